//! A tenant's domain, for example `ada.pal`.
//!
//! Invariant: a `Domain` is two or more valid labels in lower case, and short enough that every name in it fits into
//! DNS. It is therefore safe to write into a configuration file.

use cloudpal_model::{Kind, Name, NameError, Problem};
use std::{fmt, str::FromStr};

/// The longest DNS name as text (RFC 1035 §2.3.4), less the longest label and its dot.
const MAX_BYTES: usize = 253 - 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(String);

/// Why a text is not a tenant's domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    #[error(
        "the domain `{domain}` has more than {MAX_BYTES} bytes, which leaves no room for the names in it"
    )]
    TooLong { domain: String },
    #[error("the domain `{domain}` has only one label")]
    OneLabel { domain: String },
    #[error("the domain `{domain}`: {error}")]
    BadLabel { domain: String, error: NameError },
}

impl From<DomainError> for Problem {
    fn from(error: DomainError) -> Problem {
        let mend = "give a domain of at least two labels of a-z, 0-9 and '-', for example `ada.pal`";
        Problem::new(Kind::Invalid, error.to_string(), mend)
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let domain = || text.to_owned();
        if text.len() > MAX_BYTES {
            return Err(DomainError::TooLong { domain: domain() });
        }
        for label in text.split('.') {
            label.parse::<Name>().map_err(|error| DomainError::BadLabel { domain: domain(), error })?;
        }
        if !text.contains('.') {
            return Err(DomainError::OneLabel { domain: domain() });
        }
        Ok(Domain(domain()))
    }
}

impl Domain {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_domains_that_are_safe_to_write_anywhere() {
        assert_eq!("ada.pal".parse::<Domain>().unwrap().labels().collect::<Vec<_>>(), ["ada", "pal"]);
        assert!(matches!("ada".parse::<Domain>(), Err(DomainError::OneLabel { .. })));
        for bad in ["", "ada.", ".pal", "a..b", "Ada.pal", "a.pal\nPostUp = reboot", "a b.pal"] {
            assert!(matches!(bad.parse::<Domain>(), Err(DomainError::BadLabel { .. })), "{bad:?}");
        }
        let long = format!("{}.pal", vec!["x".repeat(63); 3].join("."));
        assert!(matches!(long.parse::<Domain>(), Err(DomainError::TooLong { .. })));
    }
}
