//! Objects of JSON without equal keys.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// Entries of an object by their keys. Of two entries with one key, parsers of JSON silently keep the last; here the second is
/// an error.
#[derive(Debug, PartialEq)]
pub(super) struct Distinct<T>(pub(super) BTreeMap<String, T>);

impl<T> Default for Distinct<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Distinct<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = Distinct<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names in braces, as {\"0\": ..., \"1\": ...}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            let message = format!("the key {key:?} is there twice");
            if entries.insert(key, value).is_some() {
                return Err(A::Error::custom(message));
            }
        }
        Ok(Distinct(entries))
    }
}
