//! WireGuard keys: 32 bytes, written in base64 as WireGuard's own tools do.
//!
//! Invariant: `Debug` of a secret never shows it.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl $name {
            // One macro for keys that are `Copy` and secrets that are not.
            #[allow(clippy::wrong_self_convention)]
            pub fn to_base64(&self) -> String {
                STANDARD.encode(self.0)
            }
        }

        impl FromStr for $name {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = STANDARD.decode(text).map_err(|_| "the key is not base64")?;
                Ok($name(bytes.try_into().map_err(|_| "the key is not 32 bytes long")?))
            }
        }

        impl TryFrom<String> for $name {
            type Error = &'static str;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(key: $name) -> String {
                key.to_base64()
            }
        }
    };
}

key!(
    /// A Curve25519 public key.
    #[derive(Copy, Hash, PartialOrd, Ord)]
    PublicKey
);
key!(
    /// A Curve25519 private key. Of devices, the server never keeps one.
    PrivateKey
);
key!(
    /// WireGuard's optional symmetric key, one per device.
    PresharedKey
);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_round_trip_and_redaction() {
        let key = PrivateKey([7; 32]);
        assert_eq!(key.to_base64().parse::<PrivateKey>(), Ok(key.clone()));
        assert!(!format!("{key:?}").contains(&key.to_base64()));
        assert!("short".parse::<PublicKey>().is_err());
    }
}
