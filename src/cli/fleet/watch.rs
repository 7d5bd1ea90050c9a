//! `cellgate fleet watch`.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::broker::{self, Broker, Filter};
use super::lines;
use crate::cli::shared;
use crate::clock::Date;
use crate::fleet::connection::{FleetError, Listener};
use crate::fleet::view::{Change, View};

/// How often the table is drawn at most, and Ctrl-C looked for.
const TICK: Duration = Duration::from_millis(250);

/// Watch the fleet until Ctrl-C: a table that is redrawn on a terminal, else a line for each change.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print each change as one JSON object a line.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    broker: Broker,
}

/// Watches.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (mqtt, interrupted) = (args.broker.settings()?, shared::interrupt()?);
    let draws = !args.json && std::io::stdout().is_terminal();
    let watch = Watch { args: &args, draws, interrupted: &interrupted };
    // The first connection must come about; later ones are waited for.
    let mut next = Some(broker::read(&mqtt)?);
    while watch.goes_on() {
        let read = next.take().map_or_else(|| broker::read(&mqtt), Ok);
        if let Err(error) = read.and_then(|(listener, view)| watch.session(listener, view)) {
            let text = error.to_string();
            watch.say(&json!({"time": Date::now().to_string(), "fault": text}), &text);
            std::thread::sleep(broker::RETRY);
        }
    }
    Ok(())
}

struct Watch<'a> {
    args: &'a Args,
    /// A table, not lines.
    draws: bool,
    interrupted: &'a AtomicBool,
}

impl Watch<'_> {
    fn goes_on(&self) -> bool {
        !self.interrupted.load(Ordering::SeqCst)
    }

    /// Until the connection is lost or nobody wants to watch any more.
    fn session(&self, mut listener: Listener, mut view: View) -> Result<(), FleetError> {
        if !self.draws {
            // Those that say nothing of updates are told of when they change.
            for (name, _) in view.stations().filter(|(_, station)| station.report.is_some()) {
                self.tell(&view, &Change::Station(name.clone()));
            }
        }
        let mut is_new = true;
        while self.goes_on() {
            if self.draws && is_new {
                self.draw(&view);
                is_new = false;
            }
            let mut waits = TICK;
            // All that is there, then the table.
            while let Some(heard) = listener.next(waits)? {
                if let Some(change) = view.take(&heard) {
                    is_new = true;
                    if !self.draws {
                        self.tell(&view, &change);
                    }
                }
                waits = Duration::ZERO;
                if !self.goes_on() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn draw(&self, view: &View) {
        let ((rows, columns), summary) = (size(), lines::summary(view, &self.args.filter));
        // Beside the stations: the head, how many more there are, an empty line, and one below all.
        let most = rows.saturating_sub(summary.lines().count() + 4).max(1);
        let table = lines::table(view, &self.args.filter, most);
        // Home; each line to its end and cleared behind it; the rest of the screen cleared.
        let mut text = String::from("\x1b[H");
        for line in table.lines().chain([""]).chain(summary.lines()).take(rows.saturating_sub(1)) {
            text.extend(line.chars().take(columns));
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        self.write(&text);
    }

    /// One line.
    fn say(&self, value: &serde_json::Value, text: &str) {
        if self.args.json {
            self.write(&format!("{value}\n"));
        } else {
            self.write(&format!("{} {text}\n", Date::now()));
        }
    }

    fn write(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more.
            self.interrupted.store(true, Ordering::SeqCst);
        }
    }

    fn tell(&self, view: &View, change: &Change) {
        match change {
            Change::Station(name) => match view.station(name) {
                None => {
                    let value = json!({"line": name.line, "station": name.station, "gone": true});
                    self.say(&value, &format!("{name} is gone"));
                }
                Some(station) if self.args.filter.takes(name, station) => {
                    let online = match station.is_online() {
                        Some(true) => "",
                        Some(false) => " offline",
                        None => " without a status",
                    };
                    let text = station.report.as_ref().map_or_else(String::new, |report| {
                        let offered = report.offered.map_or_else(String::new, |number| format!(", offered {number}"));
                        format!(" version {}, {}{offered}: {}", report.number, lines::doing(report), report.last)
                    });
                    self.say(&lines::station_json(name, station, Date::now()), &format!("{name}{online}{text}"));
                }
                Some(_) => {}
            },
            Change::Offer(group) if self.args.filter.takes_group(group) => {
                let offer = view.offer(group);
                let text = offer.map_or_else(|| "nothing".into(), lines::offered);
                self.say(&lines::offer_json(group, offer), &format!("offered to {group}: {text}"));
            }
            Change::Offer(_) => {}
        }
    }
}

/// Rows and columns of the terminal.
fn size() -> (usize, usize) {
    let known = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
}
