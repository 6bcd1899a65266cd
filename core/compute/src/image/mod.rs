//! OCI images become one deterministic read-only root file system and a configuration.

use serde::{Deserialize, Serialize};

/// What the image says of how it wants to be run (OCI image-spec, `config`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub exposed_tcp_ports: Vec<u16>,
    pub stop_signal: i32,
}
