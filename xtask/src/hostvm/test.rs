//! What must hold in the host VM: each part is named, timed and judged by itself.

use super::{
    Brought, image,
    job::{Job, Suite},
    machine,
};
use crate::{interrupt, programs::Profile, setup};
use anyhow::{Context, Result, bail};
use std::{
    fmt::Write,
    time::{Duration, Instant},
};

/// With either WireGuard, and with every driver.
pub const SUITES: [Suite; 4] = [
    Suite { package: "cloudpal-host", name: "net_tunnel" },
    Suite { package: "cloudpal-host", name: "net_machines" },
    Suite { package: "cloudpal-host", name: "vmm_suite" },
    Suite { package: "cloudpal-vmm", name: "library_os" },
];

const DRIVERS: [&str; 3] = ["qemu", "embedded", "firecracker"];

/// A host VM that has not ended by then is stuck.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How the guest tells how a part went: `hostvm: part WORD SECONDS NAME`.
const PART: &str = "hostvm: part ";
const END: &str = "hostvm: every part was run";

#[derive(clap::Args, Default)]
pub struct Options {
    #[command(flatten)]
    brought: Brought,
    /// Only the parts whose names contain one of these.
    only: Vec<String>,
}

impl Options {
    /// What is run with all other tests: all but what runs without a host VM, too.
    pub fn usual() -> Options {
        let only =
            ["the tests net_", "the daemon's own choice", "the drivers' suite, embedded", "the owner's day"];
        Options { only: only.map(str::to_owned).into(), ..Options::default() }
    }
}

struct Part {
    name: String,
    /// `Err`: why it is not run.
    command: Result<String, &'static str>,
}

fn parts(brought: &Brought) -> Vec<Part> {
    let part = |name: String, command: String| Part { name, command: Ok(command) };
    let mut parts = Vec::new();
    for suite in ["net_tunnel", "net_machines"] {
        let command = format!("/job/tests/{suite} --test-threads=1 --nocapture");
        parts.push(part(format!("the tests {suite}"), command));
    }
    parts.push(part("the daemon's own choice of driver and WireGuard".into(), "own_choice".into()));
    for driver in DRIVERS {
        let name = format!("the drivers' suite, {driver}");
        let suite = format!("/job/tests/vmm_suite {driver}:: --test-threads=1 --nocapture");
        let lacks = driver == "firecracker" && brought.firecracker.is_none();
        let command = match lacks {
            true => Err("no --firecracker"),
            false => Ok(format!("env CLOUDPAL_TEST_DRIVER={driver} {suite}")),
        };
        parts.push(Part { name, command });
    }
    let command = match &brought.unikernel_says {
        Some(_) => Ok("/job/tests/library_os --nocapture".to_owned()),
        None => Err("no --unikernel-says"),
    };
    parts.push(Part { name: "a library OS on the embedded VMM".into(), command });
    let command = match &brought.unikernel_serves {
        Some(_) => Ok("library_os_app".to_owned()),
        None => Err("no --unikernel-serves"),
    };
    parts.push(Part { name: "a library OS as an app that packets wake".into(), command });
    // Emulated, an app may work on its answer for longer than a second, and not be given the CPU to show for it.
    let day = "/job/xtask up --check --rounds 3 --idle 4s --built /job/built -- --wireguard kernel --driver embedded";
    parts.push(part("the owner's day, embedded driver and kernel WireGuard".into(), day.into()));
    parts
}

pub fn run(options: &Options) -> Result<()> {
    interrupt::hold()?;
    setup::run(setup::For::Test)?;
    let host = image::build()?;
    let mut job = Job::begin()?;
    job.add_build()?;
    job.add_tests(&SUITES, Profile::Tests)?;
    job.add_brought(&options.brought)?;
    let mut parts = parts(&options.brought);
    let wanted = |part: &Part| options.only.iter().any(|only| part.name.contains(only.as_str()));
    parts.retain(|part| options.only.is_empty() || wanted(part));
    let disk = job.finish(&script(&parts)?)?;
    let started = Instant::now();
    let mut report = Report::default();
    machine::Command::new(&host, &disk)?.listen(PATIENCE, |line| {
        show(line);
        report.hear(line);
    })?;
    println!("hostvm: {:.0} s", started.elapsed().as_secs_f64());
    report.judge(&parts)
}

/// All but the advice that Debian's wireguard-go gives in a box.
fn show(line: &str) {
    let line = line.split('\u{250c}').next().unwrap_or_default();
    if !line.starts_with(['\u{2502}', '\u{2514}']) {
        println!("  hostvm| {line}");
    }
}

fn script(parts: &[Part]) -> Result<String> {
    let mut script = String::from(FUNCTIONS);
    for part in parts {
        match &part.command {
            Ok(command) => writeln!(script, "part \"{}\" {command}", part.name)?,
            Err(why) => writeln!(script, "echo \"{PART}skipped 0 {}: {why}\"", part.name)?,
        }
    }
    writeln!(script, "echo \"{END}\"")?;
    Ok(script)
}

/// A test that leaves something out says so; here everything is there, so that is a failure.
const FUNCTIONS: &str = "
part() {
    name=$1; shift; start=$(date +%s)
    echo \"hostvm: begins: $name\"
    { \"$@\" 2>&1; echo $? >/tmp/code; } | tee /tmp/said
    word=ok
    [ \"$(cat /tmp/code)\" = 0 ] || word=FAILED
    if grep -q '^SKIPPED:' /tmp/said; then word=FAILED; fi
    echo \"hostvm: part $word $(($(date +%s) - start)) $name\"
}

# Here KVM is real and the kernel has WireGuard: a daemon that is told neither takes both, and `doctor` says why.
own_choice() {
    at=/tmp/own-choice; mkdir -p $at/state $at/run
    /job/built/cloudpald --endpoint 127.0.0.1 --guest-dir /job/built/guest --state-dir $at/state --run-dir $at/run &
    daemon=$!; waited=0
    while [ ! -S $at/run/api.sock ] && [ $waited -lt 60 ]; do sleep 1; waited=$((waited + 1)); done
    /job/built/cloudpal --socket $at/run/api.sock doctor | tee $at/said
    kill $daemon; wait $daemon
    grep -q 'virtual machines: embedded, since KVM is real' $at/said && grep -q 'wireguard: in the kernel' $at/said
}

# Installed like any app, asked four times over its tenant's network; it sleeps in between.
library_os_app() {
    at=/tmp/library-os-app; mkdir -p $at/state $at/run; pal=\"/job/built/cloudpal --socket $at/run/api.sock\"
    without=; [ -z \"$CLOUDPAL_UNIKERNEL_WITHOUT\" ] || without=--guests-without-$CLOUDPAL_UNIKERNEL_WITHOUT
    /job/built/cloudpald --endpoint 127.0.0.1 --guest-dir /job/built/guest --state-dir $at/state --run-dir $at/run \\
        --instance lib --driver embedded $without &
    daemon=$!; waited=0
    while [ ! -S $at/run/api.sock ] && [ $waited -lt 60 ]; do sleep 1; waited=$((waited + 1)); done
    $pal tenant add ada >$at/said && $pal app install ada os oci:/job/unikernel-image --unikernel --memory 64MiB \\
        --idle 2s --port $CLOUDPAL_UNIKERNEL_SERVES -- $CLOUDPAL_UNIKERNEL_ARGUMENTS >$at/said 2>&1 || cat $at/said
    address=$($pal app list ada | grep -o '10[.][0-9.]*'); answered=0
    for round in 1 2 3 4; do
        ip netns exec lib-t1 timeout 60 bash -c \"exec 3<>/dev/tcp/$address/$CLOUDPAL_UNIKERNEL_SERVES
            printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3\" >$at/answer
        tail -n 1 $at/answer; grep -q '^HTTP/1.. 200' $at/answer || break
        answered=$((answered + 1))
        waited=0
        until $pal app list ada | tee $at/said | grep -q asleep || [ $waited -ge 60 ]; do
            sleep 1; waited=$((waited + 1))
        done
    done
    cat $at/said $at/run/machines/m1/console.log; kill $daemon; wait $daemon
    [ $answered = 4 ] && grep -q asleep $at/said
}
";

#[derive(Default)]
struct Report {
    told: Vec<(String, String, String)>,
    ended: bool,
}

impl Report {
    fn hear(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix(PART) {
            let mut words = rest.splitn(3, ' ').map(str::to_owned);
            if let (Some(word), Some(seconds), Some(name)) = (words.next(), words.next(), words.next()) {
                self.told.push((word, seconds, name));
            }
        }
        self.ended |= line == END;
    }

    fn judge(&self, parts: &[Part]) -> Result<()> {
        for (word, seconds, name) in &self.told {
            println!("  {word:8} {seconds:>5} s  {name}");
        }
        if !self.ended || self.told.len() != parts.len() {
            let (told, all) = (self.told.len(), parts.len());
            bail!("the host VM ended after {told} of {all} parts; what it said is above");
        }
        let failed: Vec<&str> =
            self.told.iter().filter(|told| told.0 == "FAILED").map(|told| told.2.as_str()).collect();
        if !failed.is_empty() {
            bail!("in the host VM these did not hold: {}; their output is above", failed.join(", "));
        }
        let held = self.told.iter().filter(|told| told.0 == "ok").count();
        (held > 0).then_some(()).context("the host VM ran nothing: no part has such a name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(lines: &[&str]) -> Result<()> {
        let command = Ok("true".to_owned());
        let parts = [Part { name: "a".into(), command: command.clone() }, Part { name: "b".into(), command }];
        let mut report = Report::default();
        lines.iter().for_each(|line| report.hear(line));
        report.judge(&parts)
    }

    #[test]
    fn only_the_word_on_every_part_is_success() {
        let (a, b) = ("hostvm: part ok 3 a", "hostvm: part ok 4 b");
        assert!(judged(&[a, b, END]).is_ok());
        assert!(judged(&[a, "hostvm: part skipped 0 b: no reason", END]).is_ok());
        assert!(judged(&[a, b]).is_err());
        assert!(judged(&[a, END]).is_err());
        assert!(judged(&[a, "hostvm: part FAILED 4 b", END]).unwrap_err().to_string().contains('b'));
    }
}
