//! PID 1 inside every guest.
//!
//! Invariants:
//! - Init lives in the initramfs; the app lives in a mount namespace whose root is the overlay, without the
//!   capabilities to mount, to make device nodes or to trace, so it cannot reach init or its control port.
//! - Nothing runs before the host has said what (`Boot`); everything after it is an answer to the host or to a signal.
//! - Init never exits: it powers the machine off, or it panics, and the kernel's `panic=-1` ends the VMM.
//!
//! The same program, started as `init launch …`, is the small step between init and the app: see [`launch`].

mod app;
mod children;
mod clock;
mod control;
mod launch;
mod mounts;
mod network;
mod ready;
mod reseed;
mod users;
mod vsock;

use cloudpal_model::guest::{Ask, FromGuest, GuestConfig};
use control::Control;
use std::sync::Arc;

type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "launch") {
        launch::run(&args[2..]);
    }
    if std::process::id() != 1 {
        eprintln!("cloudpal-init is PID 1 of a CloudPal guest; it does nothing anywhere else");
        std::process::exit(2);
    }
    if let Err(fault) = run() {
        // The serial console is the only place that surely works here; the host shows its end in the error.
        eprintln!("cloudpal-init: {fault}");
        mounts::power_off();
    }
}

fn run() -> Result<(), Fault> {
    mounts::kernel_file_systems()?;
    mounts::load_modules("order")?;
    let by_vsock = vsock::is_used()?;
    if by_vsock {
        mounts::load_modules("vsock")?;
    }
    let control = Arc::new(if by_vsock { Control::listen()? } else { Control::open()? });
    control.tell(&FromGuest::Hello { version: 1 })?;
    let config = wait_for_boot(&control)?;
    clock::set(config.wall_us)?;
    clock::reseed(&config.entropy_base64)?;
    mounts::root(&config)?;
    network::configure(&config.network)?;
    let app = app::App::start(&config, by_vsock)?;
    app.clone().watch(control.clone());
    ready::watch(control.clone(), app.clone(), &config);
    serve(&control, &app)
}

fn wait_for_boot(control: &Control) -> Result<Box<GuestConfig>, Fault> {
    loop {
        let message = control.next()?;
        if let Ask::Boot { config } = message.ask {
            control.done(message.id)?;
            return Ok(config);
        }
        control.failed(message.id, "the machine is still booting")?;
    }
}

fn serve(control: &Arc<Control>, app: &Arc<app::App>) -> Result<(), Fault> {
    loop {
        let message = control.next()?;
        let id = message.id;
        match message.ask {
            Ask::Boot { .. } => control.failed(id, "the machine has booted already")?,
            Ask::PrepareSleep => {
                nix::unistd::sync();
                control.done(id)?;
            }
            Ask::Resumed { wall_us, entropy_base64 } => {
                match clock::set(wall_us).and_then(|()| clock::reseed(&entropy_base64)) {
                    Ok(()) => control.done(id)?,
                    Err(fault) => control.failed(id, &fault.to_string())?,
                }
            }
            Ask::Stop { grace_ms } => {
                let (control, app) = (control.clone(), app.clone());
                std::thread::spawn(move || app.stop(&control, id, grace_ms));
            }
            Ask::Exec { argv } => {
                let (control, app) = (control.clone(), app.clone());
                std::thread::spawn(move || app.exec(&control, id, &argv));
            }
            Ask::Stats => match app::stats() {
                Ok(reply) => control.reply(id, reply)?,
                Err(fault) => control.failed(id, &fault.to_string())?,
            },
        }
    }
}
