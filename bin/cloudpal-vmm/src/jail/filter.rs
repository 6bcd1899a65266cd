//! Which system calls the VMM's threads may make, and with which arguments.
//!
//! Invariants:
//! - The list of the whole process comes first and holds for every thread that is started later; a vCPU's thread adds a
//!   shorter one, which can only take away.
//! - What is on no list kills the process, not just the thread: half a VMM is none.
//! - No call here opens a path, makes a socket, starts a process or changes who we are.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// ioctl(2) numbers by their low 16 bits: the type ('K' is KVM's 0xae) and the number.
const KVM: u64 = 0xae00;
/// What a vCPU's thread asks of KVM: to run, and what its state is.
const OF_VCPU: [u64; 27] = [
    0x80, 0x81, 0x82, 0x83, 0x84, 0x88, 0x89, 0x8c, 0x8d, 0x8e, 0x8f, 0x90, 0x91, 0x98, 0x99, 0x9f, 0xa0,
    0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xad, 0xcf, 0x61,
];
/// And of the machine: memory's flags and its dirty pages, interrupts, event descriptors, controllers, timer, clock,
/// and whether an extension is there. None makes a VM, a vCPU or a device.
const OF_MACHINE: [u64; 12] = [0x03, 0x42, 0x46, 0x62, 0x63, 0x67, 0x6a, 0x76, 0x79, 0x7b, 0x7c, 0xae];
/// linux/if_tun.h: what kind of interface it is, offloads, and the length of the header.
const TUNGETIFF: u64 = 0x54d2;
const TUNSETOFFLOAD: u64 = 0x54d0;
const TUNSETVNETHDRSZ: u64 = 0x54d8;
const FIONBIO: u64 = 0x5421;

const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// Calls that work on what is open already, on memory, on time, and on this process' own threads.
const FREE: [libc::c_long; 61] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_sync_file_range,
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_close,
    libc::SYS_dup3,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_getrusage,
    libc::SYS_membarrier,
];

/// A vCPU runs, is kicked, answers its exits, and locks.
const FREE_OF_VCPU: [libc::c_long; 27] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_membarrier,
];

#[derive(Debug, thiserror::Error)]
#[error("the filter of system calls cannot be put in place: {0}")]
pub struct Failure(String);

/// Both lists, compiled before the door closes.
#[derive(Clone)]
pub struct Filters {
    process: BpfProgram,
    /// clone3(2) has its flags in memory, where no filter looks. Told that there is none, glibc takes clone(2).
    no_clone3: BpfProgram,
    vcpu: BpfProgram,
}

impl Filters {
    pub fn compile() -> Result<Filters, Failure> {
        let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
        let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        Ok(Filters {
            process: compile(process_rules()?, SeccompAction::KillProcess, SeccompAction::Allow)?,
            no_clone3: compile(clone3, SeccompAction::Allow, unknown)?,
            vcpu: compile(vcpu_rules()?, SeccompAction::KillProcess, SeccompAction::Allow)?,
        })
    }

    /// For this thread, and all that it starts.
    pub fn apply_to_process(&self) -> Result<(), Failure> {
        apply(&self.no_clone3)?;
        apply(&self.process)
    }

    /// For this thread, which runs a vCPU.
    pub fn apply_to_vcpu(&self) -> Result<(), Failure> {
        apply(&self.vcpu)
    }
}

fn apply(program: &BpfProgram) -> Result<(), Failure> {
    seccompiler::apply_filter(program).map_err(|error| Failure(error.to_string()))
}

fn compile(rules: Rules, others: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, Failure> {
    let filter = SeccompFilter::new(rules, others, listed, TargetArch::x86_64);
    filter.and_then(BpfProgram::try_from).map_err(|error| Failure(error.to_string()))
}

fn process_rules() -> Result<Rules, Failure> {
    let mut rules: Rules = FREE.iter().map(|call| (*call, Vec::new())).collect();
    let no_code = |argument| when(argument, SeccompCmpOp::MaskedEq(PROT_EXEC), 0);
    rules.insert(libc::SYS_mmap, vec![no_code(2)?]);
    rules.insert(libc::SYS_mprotect, vec![no_code(2)?]);
    // Of what is open: its size. The empty path needs this flag, and no path leads anywhere here.
    let of_open = SeccompCmpOp::MaskedEq(libc::AT_EMPTY_PATH as u64);
    rules.insert(libc::SYS_newfstatat, vec![when(3, of_open.clone(), libc::AT_EMPTY_PATH as u64)?]);
    rules.insert(libc::SYS_statx, vec![when(2, of_open, libc::AT_EMPTY_PATH as u64)?]);
    let flags = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];
    rules.insert(libc::SYS_fcntl, any(1, flags.map(|flag| flag as u64))?);
    // Two filters have their say of it: see `Filters`.
    rules.insert(libc::SYS_clone3, Vec::new());
    // A thread of this process.
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FILES) as u64;
    let spaces = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET) as u64;
    let of_thread = SeccompCmpOp::MaskedEq(thread | spaces);
    rules.insert(libc::SYS_clone, vec![when(0, of_thread, thread)?]);
    let names = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_SECCOMP, PR_SET_VMA];
    rules.insert(libc::SYS_prctl, any(0, names.map(|name| name as u64))?);
    rules.insert(libc::SYS_seccomp, any(0, [libc::SECCOMP_SET_MODE_FILTER.into()])?);
    let mut asked: Vec<u64> = OF_VCPU.iter().chain(&OF_MACHINE).map(|number| KVM | number).collect();
    asked.extend([TUNGETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, FIONBIO]);
    rules.insert(libc::SYS_ioctl, low_half(&asked)?);
    Ok(rules)
}

fn vcpu_rules() -> Result<Rules, Failure> {
    let mut rules: Rules = FREE_OF_VCPU.iter().map(|call| (*call, Vec::new())).collect();
    let no_code = |argument| when(argument, SeccompCmpOp::MaskedEq(PROT_EXEC), 0);
    rules.insert(libc::SYS_mmap, vec![no_code(2)?]);
    rules.insert(libc::SYS_mprotect, vec![no_code(2)?]);
    rules.insert(libc::SYS_prctl, any(0, [libc::PR_SET_NAME as u64, PR_SET_VMA as u64])?);
    let asked: Vec<u64> = OF_VCPU.iter().map(|number| KVM | number).collect();
    rules.insert(libc::SYS_ioctl, low_half(&asked)?);
    Ok(rules)
}

/// Names a range of memory, which glibc's allocator does: linux/prctl.h.
const PR_SET_VMA: libc::c_int = 0x5356_4d41;

fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, Failure> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    condition
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|error| Failure(error.to_string()))
}

fn any<const N: usize>(argument: u8, values: [u64; N]) -> Result<Vec<SeccompRule>, Failure> {
    values.into_iter().map(|value| when(argument, SeccompCmpOp::Eq, value)).collect()
}

/// By type and number, whatever the size and direction in an ioctl's upper half are.
fn low_half(numbers: &[u64]) -> Result<Vec<SeccompRule>, Failure> {
    numbers.iter().map(|number| when(1, SeccompCmpOp::MaskedEq(0xffff), *number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filter is proven in processes of their own: see `tests/jail.rs`.
    #[test]
    fn both_lists_compile_and_the_shorter_one_takes_away_only() {
        Filters::compile().expect("filters");
        let (process, vcpu) = (process_rules().expect("rules"), vcpu_rules().expect("rules"));
        assert!(vcpu.keys().all(|call| process.contains_key(call)));
        for call in [libc::SYS_openat, libc::SYS_socket, libc::SYS_execve, libc::SYS_setresuid] {
            assert!(!process.contains_key(&call), "{call}");
        }
    }
}
