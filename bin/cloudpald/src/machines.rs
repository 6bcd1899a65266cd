//! One task per machine: it alone talks to the machine's VMM.
//!
//! Invariants: commands are carried out one after the other; a VMM that ends by itself is told to the engine
//! exactly once; the TAP stays with the daemon whatever happens to the VMM.

use crate::brain::Brain;
use cloudpal_compute::{
    driver::{Driver, Exit, MachineSpec, SleepOutcome, Vm, WakeError},
    life::{Command, Event},
};
use cloudpal_control::event::Event as ControlEvent;
use cloudpal_host::net::{NetHost, tap::Tap};
use cloudpal_model::{Kind, MachineId, Problem};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

enum Message {
    Command {
        command: Command,
        spec: Box<MachineSpec>,
    },
    WatchTap,
    /// The daemon ends: put the machine to sleep, or stop it when that fails.
    Shutdown(oneshot::Sender<()>),
}

struct Task {
    messages: mpsc::UnboundedSender<Message>,
    vm: Arc<Mutex<Option<Arc<dyn Vm>>>>,
}

/// All machine tasks.
pub struct Machines {
    driver: Arc<dyn Driver>,
    net: Arc<NetHost>,
    brain: Brain,
    tasks: Mutex<HashMap<MachineId, Task>>,
    /// The daemon ends.
    ending: watch::Sender<bool>,
}

impl Machines {
    pub fn new(driver: Arc<dyn Driver>, net: Arc<NetHost>, brain: Brain) -> Self {
        Machines { driver, net, brain, tasks: Mutex::default(), ending: watch::Sender::new(false) }
    }

    pub fn command(&self, machine: MachineId, command: Command, spec: MachineSpec) {
        self.send(machine, Message::Command { command, spec: Box::new(spec) });
    }

    pub fn watch_tap(&self, machine: MachineId) {
        self.send(machine, Message::WatchTap);
    }

    /// The app is gone: its task ends, with its VMM.
    pub fn remove(&self, machine: MachineId) -> Option<Arc<dyn Vm>> {
        let task = self.lock().remove(&machine)?;
        running(&task.vm)
    }

    /// The machine's VMM, while it runs.
    pub fn vm(&self, machine: MachineId) -> Option<Arc<dyn Vm>> {
        self.lock().get(&machine).and_then(|task| running(&task.vm))
    }

    pub fn running(&self) -> Vec<(MachineId, Arc<dyn Vm>)> {
        self.lock().iter().filter_map(|(id, task)| Some((*id, running(&task.vm)?))).collect()
    }

    /// Puts every awake machine to sleep, all at once.
    pub async fn shutdown(&self) {
        self.ending.send_replace(true);
        let mut done = Vec::new();
        for task in self.lock().values() {
            let (reply, slept) = oneshot::channel();
            if task.messages.send(Message::Shutdown(reply)).is_ok() {
                done.push(slept);
            }
        }
        for slept in done {
            let _ = slept.await;
        }
    }

    fn send(&self, machine: MachineId, message: Message) {
        let mut tasks = self.lock();
        let task = tasks.entry(machine).or_insert_with(|| self.spawn(machine));
        // The task ends only when its sender is dropped, so this cannot fail.
        let _ = task.messages.send(message);
    }

    fn spawn(&self, id: MachineId) -> Task {
        let (messages, inbox) = mpsc::unbounded_channel();
        let vm = Arc::new(Mutex::new(None));
        let owner = Owner {
            id,
            driver: self.driver.clone(),
            net: self.net.clone(),
            brain: self.brain.clone(),
            vm: vm.clone(),
            ending: self.ending.subscribe(),
        };
        tokio::spawn(owner.run(inbox));
        Task { messages, vm }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, Task>> {
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

type Slot = Arc<Mutex<Option<Arc<dyn Vm>>>>;

fn running(slot: &Slot) -> Option<Arc<dyn Vm>> {
    slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

/// The task of one machine.
struct Owner {
    id: MachineId,
    driver: Arc<dyn Driver>,
    net: Arc<NetHost>,
    brain: Brain,
    vm: Slot,
    ending: watch::Receiver<bool>,
}

impl Owner {
    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        let mut watching = false;
        loop {
            let vm = running(&self.vm);
            tokio::select! {
                message = inbox.recv() => match message {
                    None => return,
                    Some(Message::Command { command, spec }) => {
                        watching = false;
                        self.carry_out(command, &spec).await;
                    }
                    Some(Message::WatchTap) => watching = true,
                    Some(Message::Shutdown(done)) => {
                        self.shutdown().await;
                        let _ = done.send(());
                        return;
                    }
                },
                exit = exited(vm) => self.ended(exit),
                () = packet(self.tap(), watching) => {
                    watching = false;
                    self.brain.event(ControlEvent::PacketWaiting { machine: self.id });
                }
            }
        }
    }

    async fn carry_out(&self, command: Command, spec: &MachineSpec) {
        let started = Instant::now();
        let shown = format!("{command:?}");
        let event = match command {
            Command::Adopt => self.adopt(spec).await,
            Command::Boot => tokio::select! {
                booted = self.boot(spec) => booted,
                // A boot may take minutes. Cut off, it is no failure of the app's: nothing is told, and the next
                // daemon begins it anew.
                () = self.daemon_ends() => return,
            },
            Command::Wake => self.wake(spec).await,
            Command::Sleep { idle_since_packets } => self.sleep(idle_since_packets).await,
            Command::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms)).await,
            Command::Kill => self.kill().await,
        };
        let took_us = started.elapsed().as_micros() as u64;
        tracing::info!(machine = %self.id, command = shown, event = ?event, took_us, "machine");
        self.tell(event);
    }

    async fn adopt(&self, spec: &MachineSpec) -> Event {
        match self.driver.adopt(spec).await {
            Ok(Some((vm, tap))) => {
                self.net.adopt_tap(self.id, tap);
                self.set(Some(vm));
                Event::Adopted
            }
            Ok(None) => Event::NothingToAdopt { has_snapshot: self.driver.has_snapshot(spec) },
            Err(problem) => {
                tracing::warn!(machine = %self.id, %problem, "a VMM of an earlier daemon could not be adopted");
                Event::NothingToAdopt { has_snapshot: self.driver.has_snapshot(spec) }
            }
        }
    }

    async fn boot(&self, spec: &MachineSpec) -> Event {
        let result = match self.tap_for_vmm() {
            Ok(tap) => self.driver.boot(spec, tap).await,
            Err(problem) => Err(problem),
        };
        match result {
            Ok(vm) => {
                self.set(Some(vm));
                Event::Started
            }
            Err(problem) => {
                self.take_back_tap();
                Event::StartFailed { why: problem.to_string() }
            }
        }
    }

    async fn wake(&self, spec: &MachineSpec) -> Event {
        let result = match self.tap_for_vmm() {
            Ok(tap) => self.driver.wake(spec, tap).await,
            Err(problem) => Err(WakeError::Failed(problem)),
        };
        match result {
            Ok(vm) => {
                self.set(Some(vm));
                Event::Started
            }
            Err(WakeError::SnapshotRefused { why }) => Event::SnapshotRefused { why },
            Err(WakeError::Failed(problem)) => {
                self.take_back_tap();
                Event::StartFailed { why: problem.to_string() }
            }
        }
    }

    async fn sleep(&self, idle_since_packets: u64) -> Event {
        let (Some(vm), Some(tap)) = (running(&self.vm), self.tap()) else {
            return Event::SleepFailed { why: "there is no VMM to put to sleep".into() };
        };
        let still_idle = move || tap.delivered_packets() == idle_since_packets && !tap.has_waiting();
        match vm.sleep(&still_idle).await {
            Ok(SleepOutcome::Asleep) => {
                self.set(None);
                self.take_back_tap();
                Event::Slept
            }
            Ok(SleepOutcome::Cancelled) => Event::SleepCancelled,
            Err(problem) => Event::SleepFailed { why: problem.to_string() },
        }
    }

    async fn stop(&self, grace: Duration) -> Event {
        let Some(vm) = running(&self.vm) else {
            return Event::Exited { clean: true, why: "it was not running".into() };
        };
        if let Err(problem) = vm.stop(grace).await {
            tracing::warn!(machine = %self.id, %problem, "no gentle stop; killing the VMM");
            vm.kill().await;
        }
        self.await_end(&vm).await
    }

    async fn kill(&self) -> Event {
        let Some(vm) = running(&self.vm) else {
            return Event::Exited { clean: true, why: "it was not running".into() };
        };
        vm.kill().await;
        self.await_end(&vm).await
    }

    async fn await_end(&self, vm: &Arc<dyn Vm>) -> Event {
        let Exit { clean, why } = vm.exited().await;
        self.set(None);
        self.take_back_tap();
        Event::Exited { clean, why }
    }

    async fn daemon_ends(&self) {
        let mut ending = self.ending.clone();
        // Its sender outlives every machine's task.
        let _ = ending.wait_for(|ending| *ending).await;
    }

    /// The VMM ended without being asked.
    fn ended(&self, exit: Exit) {
        tracing::warn!(machine = %self.id, clean = exit.clean, why = exit.why, "the VMM ended");
        self.set(None);
        self.take_back_tap();
        self.tell(Event::Exited { clean: exit.clean, why: exit.why });
    }

    async fn shutdown(&self) {
        let Some(vm) = running(&self.vm) else { return };
        // Nobody would answer a packet from now on, so none may hold the sleep up.
        match vm.sleep(&|| true).await {
            Ok(_) => tracing::info!(machine = %self.id, "asleep before the daemon ends"),
            Err(problem) => {
                tracing::warn!(machine = %self.id, %problem, "could not be put to sleep; stopping it");
                if vm.stop(Duration::from_secs(10)).await.is_err() {
                    vm.kill().await;
                }
            }
        }
    }

    fn tell(&self, event: Event) {
        self.brain.event(ControlEvent::Machine { machine: self.id, event });
    }

    fn tap(&self) -> Option<Arc<Tap>> {
        self.net.tap(self.id)
    }

    fn tap_for_vmm(&self) -> Result<std::os::fd::OwnedFd, Problem> {
        let tap = self.tap().ok_or_else(|| {
            let what = format!("the TAP of machine {} does not exist", self.id);
            Problem::new(Kind::Internal, what, "see the daemon's log for the network's trouble")
        })?;
        tap.dup().map_err(|e| Problem::io(format_args!("duplicating the TAP of machine {}", self.id), &e))
    }

    fn take_back_tap(&self) {
        if let Some(tap) = self.tap() {
            tap.reset_offloads();
        }
    }

    fn set(&self, vm: Option<Arc<dyn Vm>>) {
        *self.vm.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = vm;
    }
}

/// The end of the VMM, if there is one.
async fn exited(vm: Option<Arc<dyn Vm>>) -> Exit {
    match vm {
        Some(vm) => vm.exited().await,
        None => std::future::pending().await,
    }
}

/// A packet in the TAP, if it is watched.
async fn packet(tap: Option<Arc<Tap>>, watching: bool) {
    match tap {
        Some(tap) if watching => tap.wait_readable().await,
        _ => std::future::pending().await,
    }
}
