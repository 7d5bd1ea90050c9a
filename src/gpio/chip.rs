//! The kernel's GPIO lines.

use std::io;
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::line::{Bias, EdgeDetection, EventClock, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::edge::{Edge, EdgeLine};
use super::reject::OutputLine;
use super::{EdgeConfig, GpioError, Pull, RejectConfig, Slope, Voltage};
use crate::clock::Moment;

/// Edges that the kernel keeps for us; on overflow it drops the oldest, which shows in their count.
const KEPT: u32 = 64;

fn bias(pull: Pull) -> Option<Bias> {
    match pull {
        Pull::AsIs => None,
        Pull::None => Some(Bias::Disabled),
        Pull::Up => Some(Bias::PullUp),
        Pull::Down => Some(Bias::PullDown),
    }
}

pub fn input(config: &EdgeConfig) -> Result<Box<dyn EdgeLine>, GpioError> {
    let slope = match config.edge {
        Slope::Rising => EdgeDetection::RisingEdge,
        Slope::Falling => EdgeDetection::FallingEdge,
    };
    let mut request = Request::builder();
    request
        .on_chip(&config.chip)
        .with_consumer("cellgate trigger")
        .with_kernel_event_buffer_size(KEPT)
        .with_line(config.line)
        .as_input()
        .with_bias(bias(config.pull))
        .with_edge_detection(slope)
        .with_event_clock(EventClock::Monotonic);
    if config.debounce_us > 0 {
        request.with_debounce_period(Duration::from_micros(config.debounce_us));
    }
    match request.request() {
        Ok(request) => Ok(Box::new(Input { request })),
        Err(error) => {
            let (chip, why) = (config.chip.clone(), error.to_string());
            Err(GpioError::Open { chip, line: config.line, what: "input", why })
        }
    }
}

struct Input {
    request: Request,
}

impl EdgeLine for Input {
    fn wait(&mut self, patience: Duration) -> io::Result<Option<Edge>> {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.request, PollFlags::IN)];
        poll(&mut fds, Some(&timeout))?;
        let seen = fds[0].revents();
        if seen.is_empty() {
            return Ok(None);
        }
        if !seen.contains(PollFlags::IN) {
            return Err(io::Error::other("the chip is gone"));
        }
        let event = self.request.read_edge_event().map_err(io::Error::other)?;
        Ok(Some(Edge { at: Moment::from_nanos(event.timestamp_ns), count: event.line_seqno }))
    }
}

pub fn output(config: &RejectConfig) -> Result<Box<dyn OutputLine>, GpioError> {
    let mut request = Request::builder();
    request.on_chip(&config.chip).with_consumer("cellgate pass").with_line(config.line);
    // Active is PASS: the request itself, which is one step for the kernel, puts the line to reject.
    request.as_output(Value::Inactive).with_bias(bias(config.pull));
    match config.pass_level {
        Voltage::High => request.as_active_high(),
        Voltage::Low => request.as_active_low(),
    };
    match request.request() {
        Ok(request) => Ok(Box::new(Output { request })),
        Err(error) => {
            let (chip, why) = (config.chip.clone(), error.to_string());
            Err(GpioError::Open { chip, line: config.line, what: "output", why })
        }
    }
}

struct Output {
    request: Request,
}

impl OutputLine for Output {
    fn set(&mut self, pass: bool) -> io::Result<()> {
        let value = if pass { Value::Active } else { Value::Inactive };
        self.request.set_lone_value(value).map_err(io::Error::other)
    }
}
