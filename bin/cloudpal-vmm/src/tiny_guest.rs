//! The tiny guest's image, and the other end of its ports.

use crate::{Ended, Error, Machine, Ports};
use std::{collections::VecDeque, ops::ControlFlow};

#[path = "protocol.rs"]
pub mod protocol;
use protocol::{ANSWER_PORT, ARGUMENT_PORT, COMMAND_PORT, EVENT_PORT, NOTHING};

/// Built by `build.rs` from `guest/tiny.rs`.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tiny-guest.elf"));

/// Hands the guest its commands, and takes its answers. The run breaks when no command is left.
#[derive(Debug, Default)]
pub struct Operator {
    pub commands: VecDeque<(u32, u32)>,
    pub events: Vec<u32>,
    pub answers: Vec<u32>,
    argument: u32,
    /// How often the guest came out to us.
    pub exits: u64,
}

impl Operator {
    pub fn with(command: u32, argument: u32) -> Operator {
        Operator { commands: [(command, argument)].into(), ..Operator::default() }
    }
}

impl Ports for Operator {
    fn write(&mut self, port: u16, data: &[u8]) -> ControlFlow<()> {
        self.exits += 1;
        if let Ok(word) = data.try_into().map(u32::from_le_bytes) {
            match port {
                EVENT_PORT => self.events.push(word),
                ANSWER_PORT => self.answers.push(word),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn read(&mut self, port: u16, data: &mut [u8]) -> ControlFlow<()> {
        self.exits += 1;
        let (word, flow) = match port {
            COMMAND_PORT => match self.commands.pop_front() {
                Some((command, argument)) => {
                    self.argument = argument;
                    (command, ControlFlow::Continue(()))
                }
                None => (NOTHING, ControlFlow::Break(())),
            },
            ARGUMENT_PORT => (self.argument, ControlFlow::Continue(())),
            _ => return ControlFlow::Continue(()),
        };
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = word.to_le_bytes();
        }
        flow
    }
}

/// Has the guest obey one command, and returns its answer.
pub fn ask(machine: &mut Machine, command: u32, argument: u32) -> Result<u32, Error> {
    let mut operator = Operator::with(command, argument);
    match (machine.run(&mut operator)?, operator.answers.as_slice()) {
        (Ended::Break, [answer]) => Ok(*answer),
        (ended, answers) => {
            Err(Error::Vcpu(format!("the guest answered {command} with {answers:?}, {ended:?}")))
        }
    }
}
