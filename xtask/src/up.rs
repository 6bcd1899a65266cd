//! `cargo xtask up`: from a clone to a running cloud with an app in it, in one command; Ctrl-C ends it.

use crate::{
    check,
    daemon::{Cli, Daemon, Settings},
    day::{APP, PORT, TENANT, text},
    guest, interrupt, paths,
    programs::{self, Profile},
    radicale, setup,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

#[derive(clap::Args)]
pub struct Options {
    /// Play the owner's day in a world of network namespaces, print it as a timeline, and end.
    #[arg(long)]
    check: bool,
    /// With --check: keep the timeline in this file, too.
    #[arg(long, value_name = "FILE", requires = "check")]
    json: Option<PathBuf>,
    /// With --check: leave the daemon's state and log for a look.
    #[arg(long, requires = "check")]
    keep: bool,
    /// How the programs are built; the check takes the tests' build.
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// The name or address at which devices reach this machine; without it, the address of the default route.
    #[arg(long, value_name = "HOST")]
    endpoint: Option<String>,
    /// With --check: take the programs, the guest and the image from this directory, and build nothing.
    #[arg(long, value_name = "DIR", requires = "check")]
    built: Option<PathBuf>,
    /// With --check: how often the app is put to sleep and woken in a row.
    #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// With --check: after how long without packets the app falls asleep; on a machine so slow that an answer may take
    /// longer, more.
    #[arg(long, default_value = "1s", value_name = "DURATION")]
    idle: String,
    /// More arguments of cloudpald, after `--`.
    #[arg(last = true, value_name = "ARGUMENT")]
    more: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    if options.check {
        let parts = match &options.built {
            Some(dir) => check::Parts::built(dir),
            None => check::Parts::build(options.profile.unwrap_or(Profile::Dev))?,
        };
        let Options { more, rounds, idle, keep, .. } = options;
        let json = options.json.as_deref();
        return check::run(parts, &check::Play { more, rounds: *rounds, idle, json, keep: *keep });
    }
    ensure!(nix::unistd::geteuid().is_root(), "networks and machines need root: run it with sudo");
    setup::run(setup::For::Up)?;
    let programs = programs::build(options.profile.unwrap_or(Profile::Release))?;
    let guest = guest::build(&guest::default_dir())?;
    println!("guest: Linux {} from Debian", guest.kernel_version);
    let image = radicale::build()?;
    let place = paths::target().join("up");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let endpoint = options.endpoint.clone().map_or_else(own_address, Ok)?;
    interrupt::hold()?;
    let settings = Settings {
        state_dir: place.join("state"),
        run_dir: PathBuf::from("/run/cloudpal-up"),
        guest_dir: guest.dir,
        endpoint: endpoint.clone(),
        instance: "cloudpal-up".into(),
        log: place.join("cloudpald.log"),
        more: options.more.clone(),
        network: None,
    };
    println!("start: cloudpald, reachable at {endpoint}; its log is {}", settings.log.display());
    let mut daemon = Daemon::start(settings, programs)?;
    let cli = daemon.cli();
    let drawn = fill(&cli, &place.join("phone.conf"), &format!("oci:{}", image.display()))?;
    tell(&cli, &place.join("phone.conf"), drawn)?;
    stay(&mut daemon)?;
    println!("\nending: machines go to sleep; the next `cargo xtask up` finds everything as it is");
    daemon.stop().map(drop)
}

/// Adds the tenant, the device and the app, unless they are there. Says whether a QR code was drawn.
fn fill(cli: &Cli, conf: &Path, image: &str) -> Result<bool> {
    if cli.json(&["tenant", "show", TENANT]).is_err() {
        cli.show(&["tenant", "add", TENANT])?;
    }
    let phone = cli.json(&["device", "show", TENANT, "phone"]);
    if phone.is_ok() && !conf.exists() {
        println!(
            "the phone's profile {} is gone, and nobody else has its key: adding it anew",
            conf.display()
        );
        cli.show(&["device", "revoke", TENANT, "phone"])?;
    }
    let new = phone.is_err() || !conf.exists();
    if new {
        if conf.exists() {
            fs::remove_file(conf).context("cannot replace the old profile")?;
        }
        cli.show(&["device", "add", TENANT, "phone", "--conf", &conf.to_string_lossy()])?;
    }
    if cli.json(&["app", "show", TENANT, APP]).is_err() {
        cli.show(&["app", "install", TENANT, APP, image])?;
    }
    Ok(new)
}

fn tell(cli: &Cli, conf: &Path, drawn: bool) -> Result<()> {
    let app = cli.json(&["app", "show", TENANT, APP])?;
    println!("\nCloudPal is up. {TENANT}'s cloud has one app, asleep until somebody calls it:");
    println!(
        "  app      http://{}:{PORT}/  (also http://{}:{PORT}/)",
        text(&app, "host_name")?,
        text(&app, "v4")?
    );
    let scan = if drawn { "scan the QR code above with the WireGuard app, or take " } else { "" };
    println!("  phone    {scan}{}", conf.display());
    println!("           on Linux: wg-quick up {}", conf.display());
    println!("  status   {}", cli.line(&["status"]));
    println!("  Ctrl-C   ends it; everything is kept");
    Ok(())
}

fn stay(daemon: &mut Daemon) -> Result<()> {
    while !interrupt::asked() {
        if !daemon.running() {
            bail!("cloudpald ended by itself:\n{}", daemon.log_tail(20));
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// The address from which this machine would call the internet; no packet is sent.
fn own_address() -> Result<String> {
    let found = || -> std::io::Result<std::net::IpAddr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    let address =
        found().context("this machine has no way to the internet; name its address with --endpoint")?;
    Ok(address.to_string())
}
