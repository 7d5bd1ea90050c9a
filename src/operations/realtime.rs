//! Memory that stays, cores of one's own, priority: for a frame path that nothing delays.
//!
//! Each of these may be refused by the system. The station works without them, less evenly, so that a refusal is a warning
//! which says what to set, and no more.

use std::fmt;
use std::io;

use super::OperationsConfig;

/// What the system refused, and what to set so that it does not.
#[derive(Debug)]
pub struct Refused {
    what: String,
    error: io::Error,
    remedy: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.error, self.remedy)
    }
}

/// For the process, before its threads start: keeps all memory in RAM, if that is wanted. Logs what is refused.
pub fn prepare_process(config: &OperationsConfig) {
    if config.lock_memory {
        warn(lock_memory());
    }
}

/// For a thread of the frame path, by itself and first: its cores and its priority, as they are wanted, and its stack in
/// RAM. Threads that it starts afterwards, such as its pool of workers, have the same cores and priority. Logs what is
/// refused.
pub fn prepare_thread(config: &OperationsConfig) {
    if !config.affinity.is_empty() {
        warn(pin(&config.affinity));
    }
    if config.fifo_priority > 0 {
        warn(first_in_first_out(config.fifo_priority));
    }
    if config.lock_memory {
        touch_stack();
    }
}

fn warn(result: Result<(), Refused>) {
    if let Err(refused) = result {
        log::warn!("{refused}");
    }
}

/// Keeps in RAM what the process has touched and will touch; what it never touches takes none.
///
/// # Errors
/// If the system refuses.
pub fn lock_memory() -> Result<(), Refused> {
    use rustix::mm::{MlockAllFlags, mlockall};
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(|error| Refused {
        what: "keeping memory in RAM (`operations.lock-memory`)".into(),
        error: error.into(),
        remedy: "set LimitMEMLOCK=infinity in the systemd unit",
    })
}

/// Keeps the calling thread, and those that it starts, to these cores.
///
/// # Errors
/// If the system refuses, for instance since there is no such core.
pub fn pin(cores: &[usize]) -> Result<(), Refused> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    cores.iter().filter(|&&core| core < CpuSet::MAX_CPU).for_each(|&core| set.set(core));
    sched_setaffinity(None, &set).map_err(|error| Refused {
        what: format!("keeping the frame path to the cores {cores:?} (`operations.affinity`)"),
        error: error.into(),
        remedy: "name cores that there are, and that AllowedCPUs= of the systemd unit allows",
    })
}

/// Runs the calling thread, and those that it starts, before all others that wait, with this priority (1 to 99).
///
/// # Errors
/// If the system refuses.
pub fn first_in_first_out(priority: u8) -> Result<(), Refused> {
    set_scheduler(priority).map_err(|error| Refused {
        what: format!("running the frame path with SCHED_FIFO at {priority} (`operations.fifo-priority`)"),
        error,
        remedy: "set LimitRTPRIO= to at least that in the systemd unit (and RestrictRealtime=no)",
    })
}

#[cfg(target_os = "linux")]
fn set_scheduler(priority: u8) -> io::Result<()> {
    // SAFETY: all zero is a valid value of this plain struct of integers.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = priority.into();
    // SAFETY: 0 is the calling thread; the parameters live until the call returns.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn set_scheduler(_: u8) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Touches 256 KiB of the calling thread's stack, so that they are in RAM before the first frame.
#[inline(never)]
pub fn touch_stack() {
    let mut stack = [0_u8; 256 << 10];
    for page in stack.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&stack);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_to_its_cores() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let core = (0..rustix::thread::CpuSet::MAX_CPU).find(|&core| allowed.is_set(core)).unwrap();
            pin(&[core]).unwrap();
            let now = rustix::thread::sched_getaffinity(None).unwrap();
            assert_eq!((now.count(), now.is_set(core)), (1, true));
            let error = pin(&[1023]).unwrap_err().to_string();
            assert!(error.contains("[1023]") && error.contains("AllowedCPUs"), "{error}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn priority_is_given_or_refused_with_what_to_set() {
        std::thread::spawn(|| match first_in_first_out(1) {
            // SAFETY: asks for the policy of the calling thread.
            Ok(()) => assert_eq!(unsafe { libc::sched_getscheduler(0) } & libc::SCHED_FIFO, libc::SCHED_FIFO),
            Err(refused) => assert!(refused.to_string().contains("LimitRTPRIO="), "{refused}"),
        })
        .join()
        .unwrap();
        touch_stack();
    }
}
