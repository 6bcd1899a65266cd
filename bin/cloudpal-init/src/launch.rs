//! `init launch app` and `init launch exec -- argv…`: the step between init and a process of the app.
//!
//! It runs as a fresh process, so that everything here (mount namespace, root, user, capabilities, limits) is ordinary
//! safe code that ends in `exec`. What cannot be done ends with 126 or 127, as in every shell, and says why on stderr.

use crate::{Fault, mounts, users};
use capctl::caps::{Cap, CapState, bounding};
use cloudpal_model::guest::Process;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, setrlimit},
    unistd::{Gid, Uid, fchown, setgid, setgroups, setsid, setuid},
};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Command, exit},
};

/// Where init leaves the app's process for this step to read.
pub const PROCESS: &str = "/cloudpal/process.json";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The default set of container runtimes, without making device nodes: the disks are devices too.
const KEPT: [Cap; 12] = [
    Cap::CHOWN,
    Cap::DAC_OVERRIDE,
    Cap::FOWNER,
    Cap::FSETID,
    Cap::KILL,
    Cap::NET_BIND_SERVICE,
    Cap::NET_RAW,
    Cap::SETFCAP,
    Cap::SETGID,
    Cap::SETPCAP,
    Cap::SETUID,
    Cap::AUDIT_WRITE,
];

pub fn run(args: &[String]) -> ! {
    let code = match launch(args) {
        Ok(never) => match never {},
        Err(Failure { code, why }) => {
            eprintln!("cloudpal: {why}");
            code
        }
    };
    exit(code)
}

enum Never {}

struct Failure {
    code: i32,
    why: String,
}

impl<E: Into<Fault>> From<E> for Failure {
    fn from(fault: E) -> Self {
        Failure { code: 126, why: format!("the app could not be started: {}", fault.into()) }
    }
}

fn launch(args: &[String]) -> Result<Never, Failure> {
    let process: Process = serde_json::from_slice(&fs::read(PROCESS)?)?;
    let argv = match args {
        [what, dashes, argv @ ..] if what == "exec" && dashes == "--" && !argv.is_empty() => argv.to_vec(),
        _ => process.argv.clone(),
    };
    enter_root()?;
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let user = users::resolve(&process.user, &read("/etc/passwd"), &read("/etc/group"))?;
    let env = environment(&process.env, &user.home);
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    fs::create_dir_all(cwd)?;
    setsid()?;
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1 << 20)?;
    // So that an app which is not root may open /dev/stdout.
    for stream in [1, 2] {
        own_stream(stream, &user);
    }
    drop(fs::write("/proc/self/oom_score_adj", "0"));
    become_user(&user)?;
    std::env::set_current_dir(cwd)?;
    let program = find_program(&argv[0], &env)?;
    let fault = Command::new(&program).arg0(&argv[0]).args(&argv[1..]).env_clear().envs(env).exec();
    Err(Failure { code: 126, why: format!("{} cannot be run: {fault}", program.display()) })
}

/// A mount namespace of its own, in which the overlay is the root.
fn enter_root() -> Result<(), Fault> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    std::env::set_current_dir(mounts::ROOT)?;
    // The initramfs cannot be pivoted away from; moving the mount over it is what every initramfs does.
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn own_stream(stream: i32, user: &users::User) {
    let owner = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    let done = match stream {
        1 => fchown(std::io::stdout(), owner.0, owner.1),
        _ => fchown(std::io::stderr(), owner.0, owner.1),
    };
    // Only a nicety: the streams that are open work all the same.
    let _ = done;
}

fn become_user(user: &users::User) -> Result<(), Fault> {
    for cap in Cap::iter().filter(|cap| !KEPT.contains(cap)) {
        bounding::ensure_dropped(cap)?;
    }
    let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    setgroups(&groups)?;
    setgid(Gid::from_raw(user.gid))?;
    setuid(Uid::from_raw(user.uid))?;
    if user.uid == 0 {
        let mut state = CapState::get_current()?;
        let kept = KEPT.into_iter().collect();
        state.permitted &= kept;
        state.effective &= kept;
        state.inheritable.clear();
        state.set_current()?;
    }
    Ok(())
}

fn environment(given: &[String], home: &str) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = given
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    for (key, value) in [("PATH", DEFAULT_PATH), ("HOME", home)] {
        if !env.iter().any(|(known, _)| known == key) {
            env.push((key.into(), value.into()));
        }
    }
    env
}

fn find_program(name: &str, env: &[(String, String)]) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, path)| path.as_str());
    let executable = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    let found = path.split(':').map(|folder| PathBuf::from(folder).join(name)).find(executable);
    found.ok_or_else(|| Failure { code: 127, why: format!("{name} is not in the image (PATH is {path})") })
}
