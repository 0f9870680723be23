//! One table per kernel enumeration: number, variant, and the word that `ip` and `ipvsadm` print.

/// Declares an enumeration with its numbers and words; a number that is not in the table is kept, not lost.
macro_rules! numbered {
    (
        $(#[$about:meta])*
        $name:ident: $number:ty {
            $($(#[$row_about:meta])* $variant:ident = $value:literal, $word:literal;)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$row_about])* $variant,)*
            /// A number that is not in the table, as the kernel gave it.
            Other($number),
        }

        impl $name {
            /// From the kernel's number.
            pub const fn from_kernel(number: $number) -> Self {
                match number {
                    $($value => Self::$variant,)*
                    other => Self::Other(other),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$variant => formatter.pad($word),)*
                    Self::Other(number) => formatter.pad(&number.to_string()),
                }
            }
        }
    };
}

pub(super) use numbered;
