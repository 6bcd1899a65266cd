//! `cloudpal app`

use crate::{
    manifest::{DurationMs, Mib, Wish},
    operation,
    screen::Screen,
    table::Table,
    units::{self, show_ago, show_duration_ms, show_us},
};
use clap::Subcommand;
use cloudpal_api::{App, AppInstall, AppKind, Client, Secret};
use cloudpal_model::{Kind, Name, Problem};
use std::{
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
};

/// A password that is longer is something else that went into the pipe by mistake.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

#[derive(Subcommand)]
pub enum Verb {
    /// Install an app from an OCI image, in a machine of its own
    #[command(after_help = INSTALL_HELP)]
    Install(Box<Install>),
    /// The tenant's apps
    #[command(after_help = "Example:\n  cloudpal app list ada\n\nExit codes: 0 done, 3 no such tenant.")]
    List {
        /// The tenant
        tenant: Name,
    },
    /// One app
    #[command(
        after_help = "Example:\n  cloudpal app show ada radicale\n\nExit codes: 0 done, 3 no such app."
    )]
    Show {
        /// The tenant
        tenant: Name,
        /// The app
        name: Name,
    },
    /// Remove an app with its machine, its disk and its log
    #[command(after_help = "\
What the app stored is gone with it.

Example:
  cloudpal app remove ada radicale

Exit codes: 0 done, 3 no such app.
With --json: the operation.")]
    Remove {
        /// The tenant
        tenant: Name,
        /// The app
        name: Name,
    },
}

const INSTALL_HELP: &str = "\
Images:
  oci:DIR[:TAG]         an OCI image layout
  oci-archive:FILE      the same, in a tar file
  docker-archive:FILE   what `docker save` writes
  docker://HOST[:PORT]/NAME[:TAG|@DIGEST]
                        pulled from a registry
Paths are those of the host that cloudpald runs on.

The manifest is a TOML file; flags win over it:
  image  = \"oci:./radicale:latest\"   # counts from the manifest's directory
  kind   = \"container\"               # or \"unikernel\"
  memory = \"256MiB\"
  vcpus  = 1
  disk   = \"8GiB\"                    # sparse: only what is written takes space
  idle   = \"30s\"                     # or \"never\"
  argv   = [\"serve\", \"--fast\"]       # instead of the image's entrypoint and command
  env    = [\"KEY=value\"]
  ports  = [5232]

A unikernel's image (OSv, Unikraft) has its kernel at /unikraft/bin/kernel or /kernel, and may have
an initrd and a disk.img beside it. In its command line {ipv4}, {ipv6}, {gateway_ipv4},
{gateway_ipv6}, {dns}, {mac}, {hostname} and {mtu} are filled in. The network, for
  OSv        --nopci --ip=eth0,{ipv4},255.0.0.0 --defaultgw={dns} --nameserver={dns} /PROGRAM
  Unikraft   NAME netdev.ip={ipv4}/32:{gateway_ipv4}:{dns} -- ARGUMENTS

The command waits until the app is installed, and shows how far it is. Interrupting it does not
interrupt the installation.

Examples:
  cloudpal app install ada radicale oci:./radicale:latest --port 5232
  cloudpal app install ada web docker://registry.example/web:1 --memory 512MiB --idle 5m
  cloudpal app install ada web docker://registry.example/web:1 --username ada --password-stdin < secret
  cloudpal app install ada web --manifest web.toml -- /bin/web --verbose

Exit codes: 0 done, 3 no such tenant, 4 the name is taken, 5 a wrong value, 6 a bad image,
7 the host lacks something, 8 the disk is full, 9 no daemon.
With --json: the operation.";

#[derive(clap::Args)]
pub struct Install {
    /// The tenant
    tenant: Name,
    /// The app's name; it answers to NAME.TENANT.pal
    name: Name,
    /// Where the image is; see below
    #[arg(required_unless_present = "manifest")]
    image: Option<String>,
    /// Read what the app is from a TOML file
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// The image brings its own kernel (OSv, Unikraft), and the command is that kernel's command line
    #[arg(long)]
    unikernel: bool,
    /// Memory of the machine [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::mib)]
    memory: Option<u32>,
    /// Virtual CPUs of the machine [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    vcpus: Option<u32>,
    /// Size of the writable disk, which is sparse [default: 8GiB]
    #[arg(long, value_name = "SIZE", value_parser = units::mib)]
    disk: Option<u32>,
    /// Fall asleep after so long without a packet; `never` for never [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration_ms)]
    idle: Option<u64>,
    /// A TCP port that the app listens on; packets wait until one does [default: the image's exposed ports]
    #[arg(long = "port", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// Added to the image's environment; may be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = env)]
    env: Vec<String>,
    /// The user name for the registry
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the registry's password from stdin; it is used for this pull and not kept
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Return at once; `cloudpal operation show` tells how it goes
    #[arg(long)]
    detach: bool,
    /// What to run instead of the image's entrypoint and command
    #[arg(last = true)]
    argv: Vec<String>,
}

fn env(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err("it is not KEY=VALUE".to_owned()),
    }
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Install(install) => self::install(*install, client, screen)?,
        Verb::List { tenant } => screen.answer(&client.apps(&tenant)?, |answer| list(&answer.apps))?,
        Verb::Show { tenant, name } => screen.answer(&client.app(&tenant, &name)?, describe)?,
        Verb::Remove { tenant, name } => {
            let accepted = client.app_remove(&tenant, &name)?;
            let operation = operation::follow(client, screen, accepted.operation)?;
            screen.answer(&operation, |_| format!("app {tenant}/{name} is removed"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn install(install: Install, client: &Client, screen: &Screen) -> Result<(), Problem> {
    let flags = Wish {
        image: install.image,
        kind: install.unikernel.then_some(AppKind::Unikernel),
        memory: install.memory.map(Mib),
        vcpus: install.vcpus,
        disk: install.disk.map(Mib),
        idle: install.idle.map(DurationMs),
        argv: install.argv,
        env: install.env,
        ports: install.ports,
    };
    let manifest = install.manifest.map(|path| Wish::read(&path)).transpose()?.unwrap_or_default();
    let request = AppInstall {
        name: install.name.clone(),
        manifest: flags.or(manifest).into_manifest()?,
        registry_username: install.username,
        registry_password: install.password_stdin.then(password).transpose()?,
    };
    let accepted = client.app_install(&install.tenant, &request)?;
    let (tenant, name) = (install.tenant, install.name);
    if install.detach {
        return screen.answer(&client.operation(accepted.operation)?, |operation| {
            format!(
                "{tenant}/{name} is being installed; `cloudpal operation show {}` tells how it goes",
                operation.id
            )
        });
    }
    let operation = operation::follow(client, screen, accepted.operation)?;
    let app = client.app(&tenant, &name)?;
    screen.answer(&operation, |_| {
        let ports: Vec<String> = app.ports.iter().map(u16::to_string).collect();
        let ports = if ports.is_empty() { String::new() } else { format!(", TCP port {}", ports.join(", ")) };
        format!("app {tenant}/{name} is installed: {} ({}{ports}); a packet starts it", app.host_name, app.v4)
    })
}

/// One line from stdin.
fn password() -> Result<Secret, Problem> {
    let invalid =
        |what: &str| Problem::new(Kind::Invalid, what, "write the registry's password, one line, to stdin");
    let mut text = String::new();
    io::stdin().take(MAX_PASSWORD_BYTES + 1).read_to_string(&mut text).map_err(|error| {
        match error.kind() {
            io::ErrorKind::InvalidData => invalid("the password is not UTF-8"),
            _ => Problem::io("reading the password from stdin", &error),
        }
    })?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    match password {
        "" => Err(invalid("the password on stdin is empty")),
        _ if text.len() as u64 > MAX_PASSWORD_BYTES => {
            Err(invalid("the password on stdin is longer than 64KiB"))
        }
        _ => Ok(Secret::new(password)),
    }
}

pub fn list(apps: &[App]) -> Table {
    let mut table = Table::new(["APP", "NAME", "IPV4", "PORTS", "STATE", "SINCE", "WAKES", "LAST WAKE"]);
    for app in apps {
        table.row([
            app.name.to_string(),
            app.host_name.clone(),
            app.v4.to_string(),
            app.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","),
            app.state.replace('_', " "),
            show_ago(app.state_since_wall_ms),
            app.wakes.to_string(),
            app.last_wake_us.map_or("-".to_owned(), show_us),
        ]);
    }
    table
}

fn describe(app: &App) -> String {
    let mut pairs = Table::pairs().indented(2);
    pairs.pair("name", &app.host_name);
    pairs.pair("addresses", format!("{}, {}", app.v4, app.v6));
    pairs.pair("ports", app.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "));
    pairs.pair("image", &app.image);
    if !app.digest.is_empty() {
        pairs.pair("digest", &app.digest);
    }
    pairs.pair("machine", format!("{}, {} MiB, idle time {}", app.machine, app.memory_mib, idle(app)));
    pairs.pair("state", format!("{}, {}", app.state.replace('_', " "), show_ago(app.state_since_wall_ms)));
    if !app.note.is_empty() {
        pairs.pair("note", &app.note);
    }
    pairs.pair("life", format!("{} boots, {} wakes, {} sleeps", app.boots, app.wakes, app.sleeps));
    pairs.pair("last wake", app.last_wake_us.map_or("none yet".to_owned(), show_us));
    format!("app {}\n{pairs}", app.name)
}

fn idle(app: &App) -> String {
    show_duration_ms(app.idle_timeout_ms)
}
