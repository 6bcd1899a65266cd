//! Ids: small numbers, given out once by the control loop and never reused.
//!
//! They name kernel objects (interfaces, namespaces, directories), so they stay short and contain
//! nothing that a person typed.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// One person's cloud on this host: `t1`.
    TenantId,
    "t"
);
id!(
    /// A WireGuard peer of a tenant: `d1`.
    DeviceId,
    "d"
);
id!(
    /// One microVM, which runs one image of an app: `m1`.
    MachineId,
    "m"
);
id!(
    /// One entry of the operation log: `op1`.
    OperationId,
    "op"
);
