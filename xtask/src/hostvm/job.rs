//! The job disk: our build, and the script that the host VM runs.
//!
//! ```text
//!   /job/run            the script
//!   /job/built/         cloudpald, cloudpal, cloudpal-vmm, guest/, radicale/, as `up --check --built` takes them
//!   /job/xtask          this program
//!   /job/tests/NAME     test programs      /job/test-image   what their guests run
//! ```

use super::{Brought, image};
use crate::{
    guest, paths,
    programs::{self, Profile},
    radicale, shell,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

/// A file of tests: a crate's integration test.
#[derive(Clone, Copy)]
pub struct Suite {
    pub package: &'static str,
    pub name: &'static str,
}

pub struct Job {
    dir: PathBuf,
}

impl Job {
    pub fn begin() -> Result<Job> {
        let dir = paths::target().join("hostvm/job");
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(dir.join("built")).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::create_dir_all(dir.join("tests"))?;
        Ok(Job { dir })
    }

    /// The programs, the guest and the example app's image.
    pub fn add_build(&mut self) -> Result<()> {
        let programs = programs::build(Profile::Tests)?;
        let guest = guest::build(&guest::default_dir())?;
        let image = radicale::build()?;
        let built = self.dir.join("built");
        for program in [&programs.cloudpald, &programs.cloudpal, &programs.cloudpal_vmm] {
            self.program(program, &built)?;
        }
        for name in ["vmlinuz", "initramfs.img", "kernel-version"] {
            fs::create_dir_all(built.join("guest"))?;
            fs::copy(guest.dir.join(name), built.join("guest").join(name))?;
        }
        copy_tree(&image, &built.join("radicale"))?;
        self.program(&std::env::current_exe()?, &self.dir)?;
        self.test_image()
    }

    /// What the tests' guests run: they look for it beside the guest's directory.
    fn test_image(&self) -> Result<()> {
        let image = self.dir.join("built/test-image/bin");
        fs::create_dir_all(&image)?;
        let busybox = image::busybox()?;
        fs::write(image.join("busybox"), busybox)?;
        shell::output(&mut shell::command("chmod", &["755", &image.join("busybox").to_string_lossy()]))
            .map(drop)
    }

    /// Another VMM than the build's own.
    pub fn add_vmm(&mut self, program: &Path) -> Result<()> {
        self.program_as(program, &self.dir.join("built/cloudpal-vmm"))
    }

    /// Builds test programs and takes them along.
    pub fn add_tests(&mut self, suites: &[Suite], profile: Profile) -> Result<()> {
        for suite in suites {
            let program = test_program(suite, profile)?;
            self.program_as(&program, &self.dir.join("tests").join(suite.name))?;
        }
        Ok(())
    }

    pub fn add_brought(&mut self, brought: &Brought) -> Result<()> {
        if let Some(program) = &brought.firecracker {
            self.program_as(program, &self.dir.join("firecracker"))?;
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            let jailer = program.with_file_name(name.replace("firecracker", "jailer"));
            ensure!(jailer.is_file(), "{} is missing: Firecracker runs in its jailer only", jailer.display());
            self.program_as(&jailer, &self.dir.join("jailer"))?;
        }
        if let Some(kernel) = &brought.unikernel {
            // As it was built: that is what it is brought for.
            fs::copy(kernel, self.dir.join("unikernel"))
                .with_context(|| format!("cannot read {}", kernel.display()))?;
            for (name, text) in [
                ("arguments", brought.unikernel_arguments.clone()),
                ("says", brought.unikernel_says.clone()),
                ("serves", brought.unikernel_serves.map(|port| port.to_string())),
                ("without", brought.unikernel_without.clone()),
            ] {
                fs::write(self.dir.join(format!("unikernel-{name}")), text.unwrap_or_default())?;
            }
            self.unikernel_image(kernel)?;
        }
        Ok(())
    }

    /// The same kernel as an image that can be installed.
    fn unikernel_image(&self, kernel: &Path) -> Result<()> {
        let layout = self.dir.join("unikernel-image");
        let (layout, kernel) = (layout.to_string_lossy(), kernel.to_string_lossy());
        let image = format!("{layout}:latest");
        for arguments in [
            &["init", "--layout", &layout][..],
            &["new", "--image", &image],
            &["insert", "--image", &image, &kernel, "/kernel"],
        ] {
            shell::output(&mut shell::command("umoci", arguments)).context("packing the library OS")?;
        }
        Ok(())
    }

    fn program(&self, program: &Path, into: &Path) -> Result<()> {
        let name = program.file_name().with_context(|| format!("{} has no name", program.display()))?;
        self.program_as(program, &into.join(name))
    }

    /// Without what only a debugger reads, which is most of it.
    fn program_as(&self, program: &Path, to: &Path) -> Result<()> {
        let (from, to) = (program.to_string_lossy(), to.to_string_lossy());
        shell::output(&mut shell::command("strip", &["--strip-debug", "-o", &to, &from])).map(drop)
    }

    /// The disk; `script` runs after the host's own preparations.
    pub fn finish(self, script: &str) -> Result<PathBuf> {
        let run = self.dir.join("run");
        fs::write(&run, format!("{}{script}\nbusybox poweroff -f\n", image::PREAMBLE))?;
        shell::output(&mut shell::command("chmod", &["+x", &run.to_string_lossy()]))?;
        let disk = paths::target().join("hostvm/job.erofs");
        image::erofs(&self.dir, &disk)?;
        fs::remove_dir_all(&self.dir)?;
        Ok(disk)
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    shell::output(&mut shell::command("cp", &["-a", &from, &to])).map(drop)
}

/// Builds one test program. With the whole workspace's features, so that the tests' build is not thrown away.
fn test_program(suite: &Suite, profile: Profile) -> Result<PathBuf> {
    let mut cargo = shell::cargo(&["test", "--no-run", "--locked", "--quiet", "--workspace"]);
    cargo.args(["--test", suite.name, "--message-format=json-render-diagnostics"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    // Errors go to the terminal as usual; only the list of what was built comes to us.
    let built = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !built.status.success() {
        bail!("the tests {} do not build", suite.name);
    }
    let said = String::from_utf8_lossy(&built.stdout);
    let mut messages = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = messages.find_map(|message| {
        let ours = message["target"]["name"] == suite.name
            && message["package_id"].as_str()?.contains(suite.package)
            && message["target"]["kind"][0] == "test";
        ours.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    program.with_context(|| format!("cargo built no test program {}", suite.name))
}
