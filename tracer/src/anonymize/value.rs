//! Any value by its serde shape. Field names and variants are the program's own and stay; every text that
//! is data goes through [`Anonymizer::text`], whatever field it is in, so that a field that is added to the
//! facts is covered before anybody thinks of it.

use serde::Serialize;
use serde::ser::{self, Serializer};
use serde_json::Value;
use serde_json::value::Serializer as ToValue;

use super::Anonymizer;
use super::address::masked;
use crate::node::Mac;

/// Error of serde_json's values.
type Failure = serde_json::Error;

/// A value's tree, mapped.
pub(super) fn to_value<T: Serialize + ?Sized>(
    value: &T,
    mapping: &Anonymizer,
) -> Result<Value, Failure> {
    value.serialize(Mapper(mapping))
}

/// Makes host bits zero again where an address is the network of a prefix: `Prefix`, or an address and a
/// length side by side.
pub(super) fn mask_prefixes(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let length = fields.get("length").and_then(Value::as_u64);
            if let (2, Some(length)) = (fields.len(), length)
                && let Some(address) = fields.get_mut("address")
            {
                mask(address, length);
            }
            fields.values_mut().for_each(mask_prefixes);
        }
        Value::Array(items) => {
            if let [address, length] = items.as_mut_slice()
                && let Some(length) = length.as_u64()
            {
                mask(address, length);
            }
            items.iter_mut().for_each(mask_prefixes);
        }
        _ => {}
    }
}

fn mask(address: &mut Value, length: u64) {
    let parsed = address.as_str().and_then(|text| text.parse().ok());
    if let (Some(parsed), Ok(length)) = (parsed, u8::try_from(length)) {
        *address = Value::String(masked(parsed, length).to_string());
    }
}

/// Maps while it serialises.
#[derive(Clone, Copy)]
struct Mapper<'a>(&'a Anonymizer);

/// A part of a value, to be mapped in its turn.
struct Part<'a, T: ?Sized>(&'a T, &'a Anonymizer);

impl<T: Serialize + ?Sized> Serialize for Part<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mapped = to_value(self.0, self.1).map_err(ser::Error::custom)?;
        mapped.serialize(serializer)
    }
}

/// Parts of a list, map or structure on their way into serde_json's.
struct Parts<'a, C> {
    parts: C,
    mapping: &'a Anonymizer,
}

/// Hands simple values over as they are.
macro_rules! plain {
    ($($method:ident: $type:ty,)*) => {
        $(fn $method(self, value: $type) -> Result<Value, Failure> {
            ToValue.$method(value)
        })*
    };
}

impl<'a> Serializer for Mapper<'a> {
    type Ok = Value;
    type Error = Failure;
    type SerializeSeq = Parts<'a, <ToValue as Serializer>::SerializeSeq>;
    type SerializeTuple = Parts<'a, <ToValue as Serializer>::SerializeTuple>;
    type SerializeTupleStruct = Parts<'a, <ToValue as Serializer>::SerializeTupleStruct>;
    type SerializeTupleVariant = Parts<'a, <ToValue as Serializer>::SerializeTupleVariant>;
    type SerializeMap = Parts<'a, <ToValue as Serializer>::SerializeMap>;
    type SerializeStruct = Parts<'a, <ToValue as Serializer>::SerializeStruct>;
    type SerializeStructVariant = Parts<'a, <ToValue as Serializer>::SerializeStructVariant>;

    plain! {
        serialize_bool: bool,
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
        serialize_f32: f32,
        serialize_f64: f64,
        serialize_char: char,
        serialize_bytes: &[u8],
        serialize_unit_struct: &'static str,
    }

    fn serialize_str(self, text: &str) -> Result<Value, Failure> {
        Ok(Value::String(self.0.text(text)))
    }

    fn serialize_none(self) -> Result<Value, Failure> {
        Ok(Value::Null)
    }

    fn serialize_unit(self) -> Result<Value, Failure> {
        Ok(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Failure> {
        value.serialize(self)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<Value, Failure> {
        ToValue.serialize_unit_variant(name, index, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Value, Failure> {
        match name {
            // Six numbers, not a text.
            "Mac" => {
                let bytes = serde_json::from_value(value.serialize(ToValue)?)?;
                serde_json::to_value(self.0.mac(Mac(bytes)).0)
            }
            // The kernel's names and numbers.
            "Counters" => value.serialize(ToValue),
            // The kernel's names, with names of devices in them, and what it prints.
            "Sysctls" => {
                let settings: std::collections::BTreeMap<String, String> =
                    serde_json::from_value(value.serialize(ToValue)?)?;
                let mapped = settings
                    .into_iter()
                    .map(|(path, value)| (self.0.setting(&path), Value::String(value)));
                Ok(Value::Object(mapped.collect()))
            }
            _ => value.serialize(self),
        }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, Failure> {
        ToValue.serialize_newtype_variant(name, index, variant, &Part(value, self.0))
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self::SerializeSeq, Failure> {
        self.parts(ToValue.serialize_seq(length))
    }

    fn serialize_tuple(self, length: usize) -> Result<Self::SerializeTuple, Failure> {
        self.parts(ToValue.serialize_tuple(length))
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleStruct, Failure> {
        self.parts(ToValue.serialize_tuple_struct(name, length))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleVariant, Failure> {
        self.parts(ToValue.serialize_tuple_variant(name, index, variant, length))
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self::SerializeMap, Failure> {
        self.parts(ToValue.serialize_map(length))
    }

    fn serialize_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStruct, Failure> {
        self.parts(ToValue.serialize_struct(name, length))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStructVariant, Failure> {
        self.parts(ToValue.serialize_struct_variant(name, index, variant, length))
    }
}

impl<'a> Mapper<'a> {
    fn parts<C>(self, parts: Result<C, Failure>) -> Result<Parts<'a, C>, Failure> {
        Ok(Parts {
            parts: parts?,
            mapping: self.0,
        })
    }
}

impl Anonymizer {
    /// A kernel setting's path below /proc/sys, of which only a device is a name.
    fn setting(&self, path: &str) -> String {
        let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
        let at = parts
            .iter()
            .position(|part| part == "conf" || part == "neigh");
        if let Some(device) = at.and_then(|at| parts.get_mut(at + 1)) {
            *device = self.text(device);
        }
        parts.join("/")
    }
}

/// Each of serde's lists, with its elements mapped.
macro_rules! elements {
    ($($trait:ident $method:ident,)*) => {
        $(impl<C: ser::$trait<Ok = Value, Error = Failure>> ser::$trait for Parts<'_, C> {
            type Ok = Value;
            type Error = Failure;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
                self.parts.$method(&Part(value, self.mapping))
            }

            fn end(self) -> Result<Value, Failure> {
                self.parts.end()
            }
        })*
    };
}

elements! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field,
}

/// Each of serde's structures, with its fields mapped.
macro_rules! fields {
    ($($trait:ident,)*) => {
        $(impl<C: ser::$trait<Ok = Value, Error = Failure>> ser::$trait for Parts<'_, C> {
            type Ok = Value;
            type Error = Failure;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Failure> {
                self.parts.serialize_field(name, &Part(value, self.mapping))
            }

            fn end(self) -> Result<Value, Failure> {
                self.parts.end()
            }
        })*
    };
}

fields! {
    SerializeStruct,
    SerializeStructVariant,
}

impl<C: ser::SerializeMap<Ok = Value, Error = Failure>> ser::SerializeMap for Parts<'_, C> {
    type Ok = Value;
    type Error = Failure;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Failure> {
        self.parts.serialize_key(&Part(key, self.mapping))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
        self.parts.serialize_value(&Part(value, self.mapping))
    }

    fn end(self) -> Result<Value, Failure> {
        self.parts.end()
    }
}
