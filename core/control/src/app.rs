//! Requests about apps and their machines.
//!
//! Invariant: an app's record appears when its image is there, in one batch with the end of its installation; before
//! that, only the installation exists, and a failed one leaves no app.

use crate::{
    engine::Engine,
    event::Image,
    household::{self, App},
    operations::Draft,
    records::{self, AppRecord, InstallRecord, WantedRecord},
    request::{Accepted, AppKind, AppManifest},
    settings::{DISK_MIB, IDLE_TIMEOUT_MS, MAX_APPS, MEMORY_MIB, VCPUS},
    view::OperationState,
};
use cloudpal_compute::{
    image::{ImageError, Reference},
    life::{Input, Machine, Origin, State},
};
use cloudpal_model::{
    Kind, MachineId, Name, Now, OperationId, Problem,
    store::{Change, Store},
};
use std::fmt::Display;

const MAX_SOURCE_BYTES: usize = 4096;
/// All arguments and variables together, as Linux counts them for one exec.
const MAX_ARGUMENT_BYTES: usize = 128 * 1024;

impl<S: Store> Engine<S> {
    pub(crate) fn app_install(
        &mut self,
        now: Now,
        actor: &str,
        tenant_name: &Name,
        name: Name,
        manifest: AppManifest,
    ) -> Result<Accepted, Problem> {
        check_manifest(&manifest)?;
        let tenant = self.household.tenant(tenant_name)?;
        self.household.name_is_free(tenant, &name)?;
        let tenant_id = tenant.record.id;
        let installing =
            self.household.installs.values().filter(|install| install.tenant == tenant_id).count();
        let slot = self.household.free_app_slot(tenant);
        let (Some(slot), true) = (slot, tenant.machines.len() + installing < MAX_APPS) else {
            let what = format!("tenant {tenant_name} has {MAX_APPS} apps, and takes no more");
            return Err(Problem::new(Kind::Refused, what, "remove an app that is no longer used"));
        };
        let what = format!("app install {tenant_name}/{name} from {}", manifest.image);
        let mut draft = self.draft(now, actor, what, format!("app remove {tenant_name}/{name}"));
        draft.operation.tenant = Some(tenant_id);
        let machine = MachineId(Draft::next(&mut draft.meta.next_machine));
        let operation = draft.operation.id;
        draft.operation.state =
            OperationState::Running { stage: "waiting".to_owned(), done_bytes: 0, total_bytes: 0 };
        let install = InstallRecord { operation, machine, tenant: tenant_id, name, slot, manifest };
        draft.put(records::INSTALL, operation.0, &install)?;
        self.commit(draft)?;
        self.effects.extend(self.household.import(&install));
        self.household.installs.insert(operation, install);
        Ok(Accepted::Started { operation, machine })
    }

    pub(crate) fn image_progress(&mut self, id: OperationId, progress: OperationState) {
        if self.household.installs.contains_key(&id)
            && let Some(operation) = self.operations.get_mut(&id)
        {
            operation.state = progress;
        }
    }

    pub(crate) fn image_ready(&mut self, now: Now, id: OperationId, image: Image) {
        if let Err(problem) = self.finish_install(now, id, image) {
            self.install_failed(now, id, problem);
        }
    }

    fn finish_install(&mut self, now: Now, id: OperationId, image: Image) -> Result<(), Problem> {
        // An installation that was called off meanwhile.
        let Some(install) = self.household.installs.get(&id).cloned() else { return Ok(()) };
        let Some(mut operation) = self.operations.get(&id).cloned() else { return Ok(()) };
        let unikernel = install.manifest.kind == AppKind::Unikernel;
        if unikernel && !image.has_kernel {
            let what = format!("the image {} brings no kernel", install.manifest.image);
            let mend = "a unikernel's image has its kernel at /unikraft/bin/kernel or /kernel";
            return Err(Problem::new(Kind::BadImage, what, mend));
        }
        if !unikernel && household::process(&install.manifest, &image).argv.is_empty() {
            let what =
                format!("the image {} has neither an entrypoint nor a command", install.manifest.image);
            let mend = "say what to run when installing it, or add an ENTRYPOINT to the image";
            return Err(Problem::new(Kind::BadImage, what, mend));
        }
        let record = AppRecord {
            machine: install.machine,
            tenant: install.tenant,
            name: install.name,
            slot: install.slot,
            manifest: install.manifest,
            image,
            wanted: WantedRecord::OnDemand,
            boots: 0,
            wakes: 0,
            sleeps: 0,
        };
        operation.state = OperationState::Done;
        self.write(vec![
            records::put(records::key(records::APP, record.machine.0), &record)?,
            records::put(records::key(records::OPERATION, id.0), &operation)?,
            Change::Delete { key: records::key(records::INSTALL, id.0) },
        ])?;
        self.operations.insert(id, operation);
        self.household.installs.remove(&id);
        self.app_appears(now, record);
        Ok(())
    }

    fn app_appears(&mut self, now: Now, record: AppRecord) {
        let (tenant_id, machine_id) = (record.tenant, record.machine);
        let Some(tenant) = self.household.tenants.get_mut(&tenant_id) else { return };
        tenant.apps.insert(record.name.clone(), machine_id);
        tenant.machines.insert(machine_id);
        let needs_net = tenant.net.wanted + 1;
        let (machine, _) = Machine::new(now.mono_us, App::policy(&record.manifest), Origin::New);
        self.household
            .apps
            .insert(machine_id, App { record, machine, since_wall_ms: now.wall_ms, needs_net });
        self.net_changed(tenant_id);
    }

    pub(crate) fn install_failed(&mut self, now: Now, id: OperationId, problem: Problem) {
        if self.household.installs.remove(&id).is_some() {
            self.write_later(Ok(Change::Delete { key: records::key(records::INSTALL, id.0) }), now.mono_us);
            self.end_operation(now, id, OperationState::Failed { problem });
        }
    }

    pub(crate) fn app_remove(
        &mut self,
        now: Now,
        actor: &str,
        tenant_name: &Name,
        name: &Name,
    ) -> Result<Accepted, Problem> {
        let tenant = self.household.tenant(tenant_name)?;
        let tenant_id = tenant.record.id;
        if let Some(install) = self.household.install(tenant_id, name) {
            let cut = install.operation;
            return self.call_off(now, actor, tenant_name, name, cut);
        }
        let (_, app) = self.household.app(tenant_name, name)?;
        let id = app.record.machine;
        let record = AppRecord { wanted: WantedRecord::Removed, ..app.to_record() };
        let mut draft = self.draft(now, actor, format!("app remove {tenant_name}/{name}"), String::new());
        draft.operation.tenant = Some(tenant_id);
        draft.put(records::APP, id.0, &record)?;
        let operation = self.commit(draft)?;
        if let Some(tenant) = self.household.tenants.get_mut(&tenant_id) {
            tenant.apps.remove(name);
        }
        self.set_wanted(id, WantedRecord::Removed);
        self.machine_input(now, id, Input::Remove);
        self.net_changed(tenant_id);
        Ok(Accepted::Done { operation })
    }

    /// The app is removed before its image was there: its installation ends as failed.
    fn call_off(
        &mut self,
        now: Now,
        actor: &str,
        tenant: &Name,
        name: &Name,
        cut: OperationId,
    ) -> Result<Accepted, Problem> {
        let problem = Problem::new(
            Kind::Refused,
            "it was called off while the image was being imported",
            "install it again",
        );
        let mut draft = self.draft(now, actor, format!("app remove {tenant}/{name}"), String::new());
        draft.operation.tenant = self.household.installs.get(&cut).map(|install| install.tenant);
        draft.delete(records::INSTALL, cut.0);
        let operation = self.commit(draft)?;
        self.household.installs.remove(&cut);
        self.end_operation(now, cut, OperationState::Failed { problem });
        Ok(Accepted::Done { operation })
    }

    /// `Start`, `Sleep` or `Stop`.
    pub(crate) fn machine_ask(
        &mut self,
        now: Now,
        actor: &str,
        (tenant, name): (&Name, &Name),
        input: Input,
    ) -> Result<Accepted, Problem> {
        let (_, app) = self.household.app(tenant, name)?;
        let id = app.record.machine;
        let (verb, undo, wanted) = match input {
            Input::Start => ("start", "sleep", WantedRecord::OnDemand),
            Input::Stop => ("stop", "start", WantedRecord::Stopped),
            _ => ("sleep", "start", app.record.wanted.clone()),
        };
        if input == Input::Sleep
            && let State::Stopped | State::Stopping | State::Killed { .. } = app.machine.state()
        {
            let what = format!(
                "the machine of {tenant}/{name} is {}: it cannot fall asleep",
                app.machine.state().as_str()
            );
            return Err(Problem::new(Kind::Refused, what, "start it first"));
        }
        let record = AppRecord { wanted: wanted.clone(), ..app.to_record() };
        let tenant_id = app.record.tenant;
        let what = format!("machine {verb} {tenant}/{name}");
        let mut draft = self.draft(now, actor, what, format!("machine {undo} {tenant}/{name}"));
        draft.operation.tenant = Some(tenant_id);
        draft.put(records::APP, id.0, &record)?;
        let operation = self.commit(draft)?;
        self.set_wanted(id, wanted);
        self.machine_input(now, id, input);
        Ok(Accepted::Done { operation })
    }

    fn set_wanted(&mut self, id: MachineId, wanted: WantedRecord) {
        if let Some(app) = self.household.apps.get_mut(&id) {
            app.record.wanted = wanted;
        }
    }
}

fn check_manifest(app: &AppManifest) -> Result<(), Problem> {
    let invalid = |what: String, mend: &str| Err(Problem::new(Kind::Invalid, what, mend));
    check_source(&app.image)?;
    in_range("memory", "MiB", &app.memory_mib, &MEMORY_MIB)?;
    in_range("number of CPUs", "", &app.vcpus, &VCPUS)?;
    in_range("disk", "MiB", &app.disk_mib, &DISK_MIB)?;
    if app.idle_timeout_ms != 0 {
        in_range("idle timeout", "ms (or 0: never sleep)", &app.idle_timeout_ms, &IDLE_TIMEOUT_MS)?;
    }
    if app.argv.first().is_some_and(String::is_empty) {
        return invalid("the command to run is empty".to_owned(), "leave it out to run the image's own");
    }
    if let Some(bad) = app.env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return invalid(format!("the environment entry {bad:?} is not KEY=value"), "write it as KEY=value");
    }
    let texts = || app.argv.iter().chain(&app.env);
    if texts().any(|text| text.contains('\0')) {
        return invalid("an argument or variable has a NUL byte".to_owned(), "remove it");
    }
    if texts().map(|text| text.len() + 1).sum::<usize>() > MAX_ARGUMENT_BYTES {
        let what = format!("arguments and variables have more than {MAX_ARGUMENT_BYTES} bytes together");
        return invalid(what, "put them in a file inside the image");
    }
    if app.ready_tcp_ports.contains(&0) {
        return invalid("0 is not a TCP port".to_owned(), "give a port from 1 to 65535");
    }
    Ok(())
}

fn check_source(source: &str) -> Result<(), Problem> {
    if source.len() > MAX_SOURCE_BYTES {
        let what = format!("the image's source is longer than {MAX_SOURCE_BYTES} bytes");
        return Err(Problem::new(Kind::Invalid, what, "give the image a shorter path or name"));
    }
    let reference: Reference = source.parse().map_err(|error: ImageError| {
        let mend = "name it like `oci:DIR:TAG`, `oci-archive:FILE`, `docker-archive:FILE` or `docker://HOST/NAME:TAG`";
        Problem::new(Kind::Invalid, error.to_string(), mend)
    })?;
    match reference.path() {
        Some(path) if path.is_relative() => {
            let what = format!("the image's path {:?} does not begin with /", path.display().to_string());
            Err(Problem::new(
                Kind::Invalid,
                what,
                "give the whole path: the daemon's own directory is nobody's",
            ))
        }
        _ => Ok(()),
    }
}

fn in_range<T: PartialOrd + Display>(
    what: &str,
    unit: &str,
    value: &T,
    range: &std::ops::RangeInclusive<T>,
) -> Result<(), Problem> {
    if range.contains(value) {
        return Ok(());
    }
    let what = format!("the {what} cannot be {value}");
    let mend = format!("give a value from {} to {} {unit}", range.start(), range.end());
    Err(Problem::new(Kind::Invalid, what, mend.trim_end().to_owned()))
}
