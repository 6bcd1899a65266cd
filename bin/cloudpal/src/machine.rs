//! `cloudpal machine`

use crate::{
    operation,
    screen::Screen,
    table::Table,
    units::{show_bytes, show_us},
};
use clap::{Args, Subcommand};
use cloudpal_api::{Accepted, Client, Exec, Machine};
use cloudpal_model::{Name, Problem};
use std::process::ExitCode;

#[derive(Args)]
pub struct Target {
    /// The tenant
    tenant: Name,
    /// The app
    app: Name,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Wake or boot it now; also lifts a stop
    #[command(after_help = "\
Not needed in daily life: a packet starts it too.

Example:
  cloudpal machine start ada radicale

Exit codes: 0 done, 3 no such app, 5 not allowed in its present state.
With --json: the operation.")]
    Start {
        #[command(flatten)]
        target: Target,
    },
    /// Put it to sleep now, without waiting for the idle time
    #[command(after_help = "\
A packet that arrives in the meantime keeps it awake.

Example:
  cloudpal machine sleep ada radicale

Exit codes: 0 done, 3 no such app, 5 not allowed in its present state.
With --json: the operation.")]
    Sleep {
        #[command(flatten)]
        target: Target,
    },
    /// Stop it; packets do not start it again until `machine start`
    #[command(after_help = "\
Example:
  cloudpal machine stop ada radicale

Exit codes: 0 done, 3 no such app, 5 not allowed in its present state.
With --json: the operation.")]
    Stop {
        #[command(flatten)]
        target: Target,
    },
    /// Run a command inside it, as the app's user, and wait for its end
    #[command(after_help = "\
Example:
  cloudpal machine exec ada radicale -- ls -l /var/lib

Exit code: that of the command, 128 + N when signal N ended it; when it could not be run, as in
`cloudpal --help`. With --json: the exit code and the output in base64.")]
    Exec {
        #[command(flatten)]
        target: Target,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Every machine of this host, and what it uses
    #[command(after_help = "\
A machine that is asleep has no VMM process: it uses no CPU and no memory.

Example:
  cloudpal machine list")]
    List,
    /// What one machine uses
    #[command(after_help = "\
CPU is the VMM's CPU time since it was started, memory what it holds just now.

Example:
  cloudpal machine usage ada radicale --json

Exit codes: 0 done, 3 no such app.")]
    Usage {
        #[command(flatten)]
        target: Target,
    },
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Start { target } => {
            let accepted = client.machine_start(&target.tenant, &target.app)?;
            done(client, screen, &target, &accepted)?;
        }
        Verb::Sleep { target } => {
            let accepted = client.machine_sleep(&target.tenant, &target.app)?;
            done(client, screen, &target, &accepted)?;
        }
        Verb::Stop { target } => {
            let accepted = client.machine_stop(&target.tenant, &target.app)?;
            done(client, screen, &target, &accepted)?;
        }
        Verb::Exec { target, argv } => return exec(client, screen, &target, argv),
        Verb::List => screen.answer(&client.machines()?, |list| table(&list.machines))?,
        Verb::Usage { target } => {
            screen.answer(&client.machine_usage(&target.tenant, &target.app)?, |machine| {
                table(std::slice::from_ref(machine))
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn done(client: &Client, screen: &Screen, target: &Target, accepted: &Accepted) -> Result<(), Problem> {
    let operation = operation::follow(client, screen, accepted.operation)?;
    let app = client.app(&target.tenant, &target.app)?;
    screen.answer(&operation, |_| {
        let state = app.state.replace('_', " ");
        format!("{} of {}/{} is {state}", app.machine, target.tenant, target.app)
    })
}

fn exec(client: &Client, screen: &Screen, target: &Target, argv: Vec<String>) -> Result<ExitCode, Problem> {
    let output = client.machine_exec(&target.tenant, &target.app, &Exec { argv })?;
    match screen.json {
        true => screen.json(&output)?,
        false => screen.raw(&output.output()?)?,
    }
    if output.truncated {
        screen.note("note: the output was longer than what is kept");
    }
    // A code that does not fit a byte must not become 0 by being cut.
    Ok(ExitCode::from(u8::try_from(output.code).unwrap_or(255)))
}

fn table(machines: &[Machine]) -> Table {
    let mut table = Table::new(["MACHINE", "APP", "STATE", "PID", "CPU TIME", "MEMORY"]);
    for machine in machines {
        table.row([
            machine.id.to_string(),
            format!("{}/{}", machine.tenant, machine.app),
            machine.state.replace('_', " "),
            machine.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            show_us(machine.cpu_us),
            show_bytes(machine.resident_kib << 10),
        ]);
    }
    table
}
