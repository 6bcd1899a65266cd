//! Operations: every change, who asked for it, and how it goes.

use crate::ProblemBody;
use cloudpal_model::{MachineId, OperationId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The answer to a change that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    #[schema(value_type = u32)]
    pub operation: OperationId,
    /// True: done, and durable. False: under way; watch the operation.
    pub done: bool,
    /// The machine that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub machine: Option<MachineId>,
}

/// One entry of the operation log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    #[schema(value_type = u32)]
    pub id: OperationId,
    /// Who asked.
    #[schema(example = "cli:uid=0")]
    pub actor: String,
    #[schema(example = "device add ada/phone")]
    pub what: String,
    /// What would undo it, in words; empty: it cannot be undone.
    pub undo: String,
    pub at_wall_ms: u64,
    pub state: OperationState,
    /// Only while it is running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Only when it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemBody>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    Running,
    Done,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What is being done, for people.
    pub stage: String,
    pub done_bytes: u64,
    /// 0: not known.
    pub total_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// Newest first.
    pub operations: Vec<Operation>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OperationQuery {
    /// How many at most; absent: 50, never more than 1000.
    #[serde(default)]
    pub limit: Option<usize>,
}
