//! Columns: name, kind, meaning, and how a row gets its value.

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// True or false.
    Flag,
    /// A whole number, 64 bits.
    Number,
    /// Text.
    Text,
    /// A moment: nanoseconds since 1970, UTC.
    Time,
}

impl Kind {
    /// As SQL calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flag => "BOOLEAN",
            Self::Number => "BIGINT",
            Self::Text => "VARCHAR",
            Self::Time => "TIMESTAMP_NS",
        }
    }
}

/// One value; its kind is its column's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Not known, or there is none.
    Null,
    /// True or false.
    Flag(bool),
    /// A number or a moment.
    Number(i64),
    /// Text.
    Text(String),
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or(Self::Null, Self::Number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        i64::try_from(number).map_or(Self::Null, Self::Number)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A column of a table whose rows are made of an `F`'s argument.
#[derive(Clone, Copy)]
pub struct Column<F> {
    /// Name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Unit; empty where it has none.
    pub unit: &'static str,
    /// Meaning.
    pub about: &'static str,
    /// Value of a row.
    pub value: F,
}
