//! `cloudpal machine`

use crate::{
    operation,
    screen::Screen,
    table::Table,
    units::{show_bytes, show_us},
};
use clap::{Args, Subcommand};
use cloudpal_api::{Accepted, Client, Exec, Machine};
use cloudpal_model::{Kind, Name, Problem};
use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// States that a machine leaves by itself.
const MOVING: [&str; 6] = ["installing", "adopting", "booting", "waking", "falling_asleep", "stopping"];
/// How often a machine is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long a machine may stay where it was before it counts as not moving: the daemon samples it a few times a second,
/// and a sleep that was asked for waits for a quiet moment.
const GRACE: Duration = Duration::from_secs(3);
/// How long it may move: an emulated boot is slow.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Args)]
pub struct Target {
    /// The tenant
    tenant: Name,
    /// The app
    app: Name,
}

#[derive(Args)]
pub struct Change {
    #[command(flatten)]
    target: Target,
    /// Return at once, without waiting until it is so
    #[arg(long)]
    detach: bool,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Wake or boot it now; also lifts a stop
    #[command(after_help = "\
Not needed in daily life: a packet starts it too.

Example:
  cloudpal machine start ada radicale

Waits until it is so. Exit codes: 0 done, 3 no such app, 5 not allowed, or it came out otherwise.
With --json: the operation.")]
    Start {
        #[command(flatten)]
        change: Change,
    },
    /// Put it to sleep now, without waiting for the idle time
    #[command(after_help = "\
A packet that arrives in the meantime keeps it awake.

Example:
  cloudpal machine sleep ada radicale

Waits until it is so. Exit codes: 0 done, 3 no such app, 5 not allowed, or it came out otherwise.
With --json: the operation.")]
    Sleep {
        #[command(flatten)]
        change: Change,
    },
    /// Stop it; packets do not start it again until `machine start`
    #[command(after_help = "\
Example:
  cloudpal machine stop ada radicale

Waits until it is so. Exit codes: 0 done, 3 no such app, 5 not allowed, or it came out otherwise.
With --json: the operation.")]
    Stop {
        #[command(flatten)]
        change: Change,
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
        Verb::Start { change } => {
            let accepted = client.machine_start(&change.target.tenant, &change.target.app)?;
            reach(client, screen, &change, &accepted, "awake")?;
        }
        Verb::Sleep { change } => {
            let accepted = client.machine_sleep(&change.target.tenant, &change.target.app)?;
            reach(client, screen, &change, &accepted, "asleep")?;
        }
        Verb::Stop { change } => {
            let accepted = client.machine_stop(&change.target.tenant, &change.target.app)?;
            reach(client, screen, &change, &accepted, "stopped")?;
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

/// Waits until the machine has come to rest; in another state than `goal`, that is the problem.
fn reach(
    client: &Client,
    screen: &Screen,
    change: &Change,
    accepted: &Accepted,
    goal: &str,
) -> Result<(), Problem> {
    let Target { tenant, app: name } = &change.target;
    let operation = operation::follow(client, screen, accepted.operation)?;
    let start = Instant::now();
    let mut app = client.app(tenant, name)?;
    let moving = |state: &str| MOVING.contains(&state) || start.elapsed() < GRACE;
    while !change.detach && app.state != goal && moving(&app.state) {
        if start.elapsed() > PATIENCE {
            let what = format!("{} of {tenant}/{name} is still {}", app.machine, words(&app.state));
            let mend =
                format!("it goes on by itself; `cloudpal logs {tenant} {name}` shows what the app says");
            return Err(Problem::new(Kind::Refused, what, mend));
        }
        thread::sleep(POLL);
        app = client.app(tenant, name)?;
    }
    if !change.detach && app.state != goal {
        let note = if app.note.is_empty() { String::new() } else { format!(": {}", app.note) };
        let what = format!("{} of {tenant}/{name} is {}, not {goal}{note}", app.machine, words(&app.state));
        let mend =
            format!("a packet may have come in the meantime; `cloudpal logs {tenant} {name}` tells more");
        return Err(Problem::new(Kind::Refused, what, mend));
    }
    screen.answer(&operation, |_| format!("{} of {tenant}/{name} is {}", app.machine, words(&app.state)))
}

fn words(state: &str) -> String {
    state.replace('_', " ")
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
            words(&machine.state),
            machine.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            show_us(machine.cpu_us),
            show_bytes(machine.resident_kib << 10),
        ]);
    }
    table
}
