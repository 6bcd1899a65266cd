//! Names that people type for tenants, devices and apps. Each becomes a label in the tenant's DNS.
//!
//! Invariant: a `Name` is one valid DNS label in lower case (RFC 1035 §2.3.1, digits allowed first by RFC 1123 §2.1).

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The longest DNS label, in bytes (RFC 1035 §2.3.4).
const MAX_BYTES: usize = 63;

/// A valid DNS label: 1 to 63 of `a-z`, `0-9` and `-`, not starting or ending with `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    Empty,
    TooLong { bytes: usize },
    BadCharacter { character: char },
    HyphenAtEdge,
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(NameError::TooLong { bytes: text.len() });
        }
        let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
        if let Some(character) = text.chars().find(|c| !allowed(c)) {
            return Err(NameError::BadCharacter { character });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::HyphenAtEdge);
        }
        Ok(Name(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => write!(f, "the name is empty")?,
            NameError::TooLong { bytes } => write!(f, "the name has {bytes} bytes")?,
            NameError::BadCharacter { character } => write!(f, "the name contains {character:?}")?,
            NameError::HyphenAtEdge => write!(f, "the name starts or ends with '-'")?,
        }
        write!(f, "; use 1 to 63 of a-z, 0-9 and '-', for example `phone-2`")
    }
}

impl std::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_labels_and_refuses_the_rest_with_the_reason() {
        for good in ["a", "phone", "phone-2", "2fa", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().map(String::from), Ok(good.to_owned()));
        }
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert_eq!("x".repeat(64).parse::<Name>(), Err(NameError::TooLong { bytes: 64 }));
        assert_eq!("a.b".parse::<Name>(), Err(NameError::BadCharacter { character: '.' }));
        assert_eq!("Phone".parse::<Name>(), Err(NameError::BadCharacter { character: 'P' }));
        assert_eq!("-a".parse::<Name>(), Err(NameError::HyphenAtEdge));
    }

    #[test]
    fn json_cannot_smuggle_a_bad_name_in() {
        assert!(serde_json::from_str::<Name>("\"../etc\"").is_err());
    }
}
