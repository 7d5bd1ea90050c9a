//! The screen at the machine.
