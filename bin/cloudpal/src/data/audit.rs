//! `cloudpal data audit`: the tenant's own log of what was asked of it.

use super::{Place, core::consume};
use crate::{screen::Screen, units::show_ago};
use cloudpal_api::{AUDIT_CORE, BlockQuery, Client, Operation, OperationState};
use cloudpal_model::{Kind, Name, Problem};
use std::io::{self, Write};

pub fn run(
    client: &Client,
    screen: &Screen,
    tenant: Name,
    follow: bool,
    consumer: Option<Name>,
) -> Result<(), Problem> {
    let name = AUDIT_CORE.parse().map_err(|error| {
        Problem::new(Kind::Internal, format!("{AUDIT_CORE}: {error}"), "report it as a bug")
    })?;
    let query = BlockQuery { follow, ..BlockQuery::default() };
    let place = Place { tenant, name };
    consume(client, screen, &place, (query, consumer.as_ref()), |block| line(screen, block))
}

fn line(screen: &Screen, block: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if screen.json {
        stdout.write_all(block)?;
    } else {
        match serde_json::from_slice::<Operation>(block) {
            Ok(operation) => stdout.write_all(described(&operation).as_bytes())?,
            Err(_) => stdout.write_all(b"(an entry that this version does not know)")?,
        }
    }
    stdout.write_all(b"\n")?;
    stdout.flush()
}

fn described(operation: &Operation) -> String {
    let state = match (operation.state, &operation.problem) {
        (OperationState::Running, _) => "begun".to_owned(),
        (OperationState::Done, _) => "done".to_owned(),
        (OperationState::Failed, problem) => {
            format!("failed: {}", problem.as_ref().map(|problem| problem.detail.as_str()).unwrap_or_default())
        }
    };
    let Operation { id, actor, what, at_wall_ms, .. } = operation;
    crate::screen::printable(&format!("{id}  {}  {actor}  {what}  {state}", show_ago(*at_wall_ms)))
}
