//! The host as a whole: what runs, and what it lacks.

use crate::Tenant;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    pub tenants: Vec<Tenant>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Doctor {
    /// Every check is ok.
    pub ok: bool,
    pub checks: Vec<Check>,
}

/// One thing that CloudPal needs of its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do when it is not ok.
    pub mend: String,
}
