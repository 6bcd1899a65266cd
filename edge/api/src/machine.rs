//! A machine: the microVM that runs an app's image.

use base64::{Engine, engine::general_purpose::STANDARD};
use cloudpal_model::{Kind, MachineId, Name, Problem};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    #[schema(value_type = u32)]
    pub id: MachineId,
    #[schema(schema_with = crate::schema::name)]
    pub tenant: Name,
    #[schema(schema_with = crate::schema::name)]
    pub app: Name,
    /// As in [`crate::App::state`].
    pub state: String,
    /// The VMM process; `null`: there is none, and the machine uses no CPU and no memory.
    pub pid: Option<u32>,
    /// CPU time of the VMM process so far, microseconds.
    pub cpu_us: u64,
    /// Resident memory of the VMM process, KiB.
    pub resident_kib: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineList {
    pub machines: Vec<Machine>,
}

/// A command to run inside the guest, in the app's root, as the app's user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    #[schema(min_items = 1)]
    pub argv: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecOutput {
    /// The command's exit code; 128 + N when signal N ended it.
    pub code: i32,
    /// What it wrote to stdout and stderr, in the order in which it came, base64.
    pub output_base64: String,
    /// More was written than is kept.
    pub truncated: bool,
}

impl ExecOutput {
    pub fn new(code: i32, output: &[u8], truncated: bool) -> Self {
        ExecOutput { code, output_base64: STANDARD.encode(output), truncated }
    }

    pub fn output(&self) -> Result<Vec<u8>, Problem> {
        STANDARD.decode(&self.output_base64).map_err(|error| {
            let what = format!("the daemon's answer: output_base64: {error}");
            Problem::new(Kind::Internal, what, "use a cloudpal and a cloudpald of the same version")
        })
    }
}
