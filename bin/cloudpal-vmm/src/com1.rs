//! COM1: what the guest writes goes to a file, line by line; nothing comes in.
//!
//! Invariants: a guest that writes much waits for nobody and makes nothing grow: what the file does not take at once is
//! lost. What a snapshot keeps are the registers; a line that was begun is written before.

use crate::virtio::Mismatch;
use std::{
    fs::File,
    io::{self, Write},
};
use vm_superio::{
    Trigger,
    serial::{NoEvents, Serial, SerialState},
};
use vmm_sys_util::eventfd::EventFd;

/// Longer lines are written in pieces.
const PIECE: usize = 256;
const REGISTERS: usize = 9;

pub(crate) struct Com1(Serial<Line, NoEvents, Output>);

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct Output {
    file: Option<File>,
    pending: Vec<u8>,
}

impl Output {
    fn send(&mut self) {
        if let Some(file) = &mut self.file {
            // What it does not take is lost.
            let _ = file.write(&self.pending);
        }
        self.pending.clear();
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.pending.push(*byte);
            if *byte == b'\n' || self.pending.len() >= PIECE {
                self.send();
            }
        }
        Ok(bytes.len())
    }

    /// Called after every byte: that is not the end of a line.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Com1 {
    pub(crate) fn new(interrupt: EventFd, file: Option<File>) -> Com1 {
        Com1(Serial::new(Line(interrupt), Output { file, pending: Vec::with_capacity(PIECE) }))
    }

    /// A file for the output of a port that has none yet.
    pub(crate) fn set_output(&mut self, file: Option<File>) {
        self.0.writer_mut().file = file;
    }

    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        // An interrupt that cannot be raised is one that the driver does without.
        let _ = self.0.write(offset, value);
    }

    pub(crate) fn flush(&mut self) {
        self.0.writer_mut().send();
    }

    pub(crate) fn save(&self) -> [u8; REGISTERS] {
        let state = self.0.state();
        [
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ]
    }

    /// A driver that waits to hear that its byte is gone hears it now: the interrupt may have been on its way.
    pub(crate) fn restore(&mut self, registers: [u8; REGISTERS], interrupt: EventFd) -> Result<(), Mismatch> {
        let [
            divisor_low,
            divisor_high,
            enable,
            identification,
            line_control,
            line,
            modem_control,
            modem,
            scratch,
        ] = registers;
        let state = SerialState {
            baud_divisor_low: divisor_low,
            baud_divisor_high: divisor_high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control,
            line_status: line,
            modem_control,
            modem_status: modem,
            scratch,
            in_buffer: Vec::new(),
        };
        let output = Output { file: self.0.writer_mut().file.take(), pending: Vec::with_capacity(PIECE) };
        self.0 = Serial::from_state(&state, Line(interrupt), NoEvents, output)
            .map_err(|_| Mismatch("the registers of COM1 are none"))?;
        if enable != 0 {
            self.0
                .interrupt_evt()
                .trigger()
                .map_err(|_| Mismatch("the interrupt of COM1 cannot be raised"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    fn port() -> (Com1, File, EventFd) {
        let file = tempfile::tempfile().expect("a file");
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).expect("an event");
        let com1 = Com1::new(interrupt.try_clone().expect("twice"), Some(file.try_clone().expect("twice")));
        (com1, file, interrupt)
    }

    fn written(mut file: File) -> String {
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("reads");
        text
    }

    #[test]
    fn lines_arrive_and_the_rest_at_a_flush() {
        let (mut com1, file, _) = port();
        b"one\ntwo".iter().for_each(|byte| com1.write(0, *byte));
        assert_eq!(written(file.try_clone().expect("twice")), "one\n");
        com1.flush();
        assert_eq!(written(file), "one\ntwo");
    }

    #[test]
    fn a_waiting_driver_hears_of_a_wake() {
        let (mut com1, _, interrupt) = port();
        com1.write(1, 2);
        let saved = com1.save();
        let (mut woken, _, _) = port();
        let _ = interrupt.read();
        woken.restore(saved, interrupt.try_clone().expect("twice")).expect("restores");
        assert!(interrupt.read().expect("raised") > 0);
        assert_eq!(woken.save(), saved);
    }
}
