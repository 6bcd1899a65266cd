//! `cloudpal device`
//!
//! Invariants of `add`: the profile's file is made, for its owner's eyes alone, before the device is asked for, so that
//! a path that exists is refused while nothing has happened; a profile that could not be kept leaves no device behind.

use crate::{
    operation, qr,
    screen::Screen,
    table::Table,
    units::{show_ago, show_bytes},
};
use clap::Subcommand;
use cloudpal_api::{Client, Device, DeviceAdd, DeviceAdded};
use cloudpal_model::{Kind, Name, Problem};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Subcommand)]
pub enum Verb {
    /// Add a device: prints its profile as a QR code and writes it to a file
    #[command(after_help = "\
Scan the QR code with the WireGuard app, or give the file to any WireGuard client. Both hold the
device's private key, which is not kept by the server and not shown again. The file is readable by
you alone, and one that exists is never overwritten.

Examples:
  cloudpal device add ada phone
  cloudpal device add ada laptop --overlay-only --conf /etc/wireguard/ada.conf --no-qr
  cloudpal device add ada tv --conf - | ssh tv 'cat > wg0.conf'

Exit codes: 0 done, 3 no such tenant, 4 the name or the file is taken, 5 a bad name, 8 the disk is full.
With --json: the operation's number and the profile's text.")]
    Add {
        /// The tenant
        tenant: Name,
        /// The device's name: 1 to 63 of a-z, 0-9 and '-'
        name: Name,
        /// Only the tenant's own network goes through the tunnel, not the rest of the internet
        #[arg(long)]
        overlay_only: bool,
        /// Where to write the profile; '-' for stdout [default: ./NAME.conf]
        #[arg(long, value_name = "FILE")]
        conf: Option<PathBuf>,
        /// Print no QR code
        #[arg(long)]
        no_qr: bool,
    },
    /// The tenant's devices
    #[command(after_help = "Example:\n  cloudpal device list ada\n\nExit codes: 0 done, 3 no such tenant.")]
    List {
        /// The tenant
        tenant: Name,
    },
    /// One device
    #[command(
        after_help = "Example:\n  cloudpal device show ada phone\n\nExit codes: 0 done, 3 no such device."
    )]
    Show {
        /// The tenant
        tenant: Name,
        /// The device
        name: Name,
    },
    /// Revoke a device: its next packet gets no answer
    #[command(after_help = "\
Example:
  cloudpal device revoke ada phone

Exit codes: 0 done, 3 no such device.
With --json: the operation.")]
    Revoke {
        /// The tenant
        tenant: Name,
        /// The device
        name: Name,
    },
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Add { tenant, name, overlay_only, conf, no_qr } => {
            let conf = conf.unwrap_or_else(|| default_conf(&name));
            let add = DeviceAdd { name, exit: !overlay_only };
            self::add(client, screen, &tenant, &add, &conf, !no_qr)?;
        }
        Verb::List { tenant } => screen.answer(&client.devices(&tenant)?, |answer| list(&answer.devices))?,
        Verb::Show { tenant, name } => screen.answer(&client.device(&tenant, &name)?, describe)?,
        Verb::Revoke { tenant, name } => {
            let accepted = client.device_revoke(&tenant, &name)?;
            let operation = operation::follow(client, screen, accepted.operation)?;
            screen.answer(&operation, |_| {
                format!("device {tenant}/{name} is revoked: its packets get no answer")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn add(
    client: &Client,
    screen: &Screen,
    tenant: &Name,
    add: &DeviceAdd,
    conf: &Path,
    draw: bool,
) -> Result<(), Problem> {
    if conf == Path::new("-") {
        let added = client.device_add(tenant, add)?;
        let shown = match screen.json {
            true => serde_json::to_string_pretty(&added)
                .map_err(|error| Problem::new(Kind::Internal, error.to_string(), "report it as a bug"))
                .and_then(|text| screen.secret(&text)),
            false => {
                if draw {
                    screen.note(qr::draw(added.conf.reveal(), io::IsTerminal::is_terminal(&io::stderr()))?);
                }
                screen.secret(added.conf.reveal())
            }
        };
        return shown.map_err(|problem| take_back(client, tenant, add, problem));
    }
    let file = reserve(conf)?;
    let added = client.device_add(tenant, add).inspect_err(|_| unreserve(screen, conf))?;
    if let Err(error) = keep(file, &added) {
        unreserve(screen, conf);
        let problem = Problem::io(format_args!("writing {}", conf.display()), &error);
        return Err(take_back(client, tenant, add, problem));
    }
    if screen.json {
        return screen.json(&added);
    }
    let mut scan = "";
    if draw {
        screen.text(qr::draw(added.conf.reveal(), screen.stdout_is_terminal())?)?;
        scan = "scan the code with the WireGuard app, or ";
    }
    screen.text(format!(
        "device {tenant}/{} is there: {scan}give {} to a WireGuard client\n\
         its private key is kept nowhere else and not shown again",
        add.name,
        conf.display()
    ))
}

/// Nobody has the private key of a device whose profile could not be handed over: the device is of no use.
fn take_back(client: &Client, tenant: &Name, add: &DeviceAdd, mut problem: Problem) -> Problem {
    match client.device_revoke(tenant, &add.name) {
        Ok(_) => problem.what.push_str("; the device was revoked again"),
        Err(second) => {
            problem.what.push_str(&format!("; the device is there and could not be revoked: {second}"))
        }
    }
    problem
}

/// wg-quick names the interface after the file, and Linux takes 15 characters.
fn default_conf(device: &Name) -> PathBuf {
    let interface: String = device.as_str().chars().take(15).collect();
    PathBuf::from(format!("{}.conf", interface.trim_end_matches('-')))
}

/// The file, empty, new, and for its owner's eyes alone.
fn reserve(conf: &Path) -> Result<File, Problem> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(conf).map_err(|error| {
        match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let mend = "choose another path with --conf, or move the file away; nothing was changed";
                Problem::new(Kind::Taken, format!("{} exists", conf.display()), mend)
            }
            io::ErrorKind::NotFound => {
                let mend =
                    "make its directory first, or choose another path with --conf; nothing was changed";
                Problem::new(Kind::Invalid, format!("{}: there is no such directory", conf.display()), mend)
            }
            _ => Problem::io(format_args!("making {}", conf.display()), &error),
        }
    })
}

fn unreserve(screen: &Screen, conf: &Path) {
    if let Err(error) = std::fs::remove_file(conf) {
        screen.note(format!("note: {} could not be removed again: {error}", conf.display()));
    }
}

fn keep(mut file: File, added: &DeviceAdded) -> io::Result<()> {
    file.write_all(added.conf.reveal().as_bytes())?;
    file.sync_all()
}

pub fn list(devices: &[Device]) -> Table {
    let mut table = Table::new(["DEVICE", "IPV4", "INTERNET", "SEEN", "FROM", "RECEIVED", "SENT"]);
    for device in devices {
        table.row([
            device.name.to_string(),
            device.v4.to_string(),
            if device.exit { "yes" } else { "no" }.to_owned(),
            device.last_handshake_wall_ms.map_or("-".to_owned(), show_ago),
            device.endpoint.map_or("-".to_owned(), |endpoint| endpoint.to_string()),
            show_bytes(device.received_bytes),
            show_bytes(device.sent_bytes),
        ]);
    }
    table
}

fn describe(device: &Device) -> String {
    let mut pairs = Table::pairs().indented(2);
    pairs.pair("addresses", format!("{}, {}", device.v4, device.v6));
    pairs.pair("public key", device.public_key);
    pairs.pair("internet", if device.exit { "through this host" } else { "not through this host" });
    pairs.pair("added", show_ago(device.added_wall_ms));
    let seen = device.last_handshake_wall_ms.map_or("not since the daemon started".to_owned(), show_ago);
    pairs.pair("last handshake", seen);
    if let Some(endpoint) = device.endpoint {
        pairs.pair("from", endpoint);
    }
    pairs.pair("received", show_bytes(device.received_bytes));
    pairs.pair("sent", show_bytes(device.sent_bytes));
    format!("device {}\n{pairs}", device.name)
}
