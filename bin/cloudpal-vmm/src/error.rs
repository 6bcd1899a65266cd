//! What can be refused or fail, and how it is told to people.

use cloudpal_model::{Kind, Problem};
use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("this host cannot run the VMM: {0}")]
    Host(String),
    #[error("a guest cannot have {0} MiB of memory")]
    MemorySize(u32),
    #[error("the kernel cannot be loaded: {0}")]
    Kernel(#[from] crate::kernel::Refusal),
    #[error("the command line has {0} bytes; {max} is the most", max = crate::layout::COMMAND_LINE_MAX - 1)]
    CommandLine(usize),
    #[error("a guest cannot have {0} vCPUs; 1 to 32 it can have")]
    Vcpus(u8),
    #[error("the machine has {slots} places for devices; {given} were given")]
    Devices { given: usize, slots: usize },
    #[error("the guest's memory ends before {0:#x}")]
    OutsideMemory(u64),
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(#[from] crate::snapshot::Refusal),
    #[error("KVM refused to {doing}: {source}")]
    Kvm { doing: &'static str, source: io::Error },
    #[error("KVM does not take the saved value of MSR {0:#x}")]
    Msr(u32),
    #[error("the vCPU stopped for a reason without a remedy: {0}")]
    Vcpu(String),
    #[error("the save was given up")]
    GivenUp,
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { path, source }
    }
}

/// Names what was asked of KVM when it refuses.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kvm_ioctls::Error> {
    fn doing(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|errno| Error::Kvm { doing, source: io::Error::from_raw_os_error(errno.errno()) })
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let what = error.to_string();
        match error {
            Error::File { path, source } => Problem::io(path.display(), &source),
            Error::Host(_) => Problem::new(Kind::HostLacks, what, "use another driver on this host"),
            Error::MemorySize(_)
            | Error::CommandLine(_)
            | Error::OutsideMemory(_)
            | Error::Vcpus(_)
            | Error::Devices { .. } => Problem::new(Kind::Invalid, what, "change the machine's settings"),
            Error::Kernel(_) => {
                Problem::new(Kind::BadImage, what, "give it a 64-bit x86 kernel: an ELF file or a bzImage")
            }
            Error::Snapshot(_) | Error::Msr(_) => Problem::new(Kind::Refused, what, "boot from the disk"),
            Error::Kvm { .. } | Error::Vcpu(_) | Error::GivenUp => {
                Problem::new(Kind::Internal, what, "see the VMM's log")
            }
        }
    }
}
