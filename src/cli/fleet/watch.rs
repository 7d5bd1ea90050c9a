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
use crate::outbox::mqtt::MqttConfig;

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
    // The first connection must come about; later ones are waited for.
    let mut next = Some(broker::read(&mqtt)?);
    while !interrupted.load(Ordering::SeqCst) {
        let Err(error) = session(&args, &mqtt, next.take(), draws, &interrupted) else { break };
        say(&args, &json!({"time": Date::now().to_string(), "fault": error.to_string()}), &error.to_string());
        std::thread::sleep(broker::RETRY);
    }
    Ok(())
}

/// Until the connection is lost or nobody wants to watch any more.
fn session(
    args: &Args,
    mqtt: &MqttConfig,
    open: Option<(Listener, View)>,
    draws: bool,
    interrupted: &AtomicBool,
) -> Result<(), FleetError> {
    let (mut listener, mut view) = match open {
        Some(open) => open,
        None => broker::read(mqtt)?,
    };
    if !draws {
        for (name, station) in view.stations().filter(|(name, station)| args.filter.takes(name, station)) {
            tell(args, &view, &Change::Station(name.clone()), station.report.is_some());
        }
    }
    let mut is_new = true;
    while !interrupted.load(Ordering::SeqCst) {
        if draws && is_new {
            draw(&view, args);
            is_new = false;
        }
        let mut waits = TICK;
        // All that is there, then the table.
        while let Some(heard) = listener.next(waits)? {
            if let Some(change) = view.take(&heard) {
                is_new = true;
                if !draws {
                    tell(args, &view, &change, true);
                }
            }
            waits = if draws { Duration::ZERO } else { waits };
            if interrupted.load(Ordering::SeqCst) {
                break;
            }
        }
    }
    Ok(())
}

/// Rows and columns of the terminal.
fn size() -> (usize, usize) {
    let known = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    known.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()))
}

fn draw(view: &View, args: &Args) {
    let ((rows, columns), summary) = (size(), lines::summary(view, &args.filter));
    // Beside the stations: the head, how many more there are, an empty line, and one below all.
    let most = rows.saturating_sub(summary.lines().count() + 4).max(1);
    let table = lines::table(view, &args.filter, most);
    // Home; each line to its end and cleared behind it; the rest of the screen cleared.
    let mut text = String::from("\x1b[H");
    for line in table.lines().chain([""]).chain(summary.lines()).take(rows - 1) {
        text.extend(line.chars().take(columns));
        text.push_str("\x1b[K\r\n");
    }
    text.push_str("\x1b[J");
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line, whether or not somebody still reads.
fn say(args: &Args, value: &serde_json::Value, text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = if args.json { writeln!(out, "{value}") } else { writeln!(out, "{} {text}", Date::now()) };
    let _ = out.flush();
}

fn tell(args: &Args, view: &View, change: &Change, is_wanted: bool) {
    match change {
        Change::Station(name) => {
            let Some(station) = view.station(name) else {
                return say(
                    args,
                    &json!({"line": name.line, "station": name.station, "gone": true}),
                    &format!("{name} is gone"),
                );
            };
            if !is_wanted || !args.filter.takes(name, station) {
                return;
            }
            let online = match station.is_online() {
                Some(true) => "",
                Some(false) => " offline",
                None => " never online",
            };
            let text = station.report.as_ref().map_or_else(String::new, |report| {
                let offered = report.offered.map_or_else(String::new, |number| format!(", offered {number}"));
                format!(" version {}, {}{offered}: {}", report.number, lines::doing(report), report.last)
            });
            say(args, &lines::station_json(name, station, Date::now()), &format!("{name}{online}{text}"));
        }
        Change::Offer(group) if args.filter.takes_group(group) => {
            let offer = view.offer(group);
            let text = offer.map_or_else(|| "nothing".into(), lines::offered);
            say(args, &lines::offer_json(group, offer), &format!("offered to {group}: {text}"));
        }
        Change::Offer(_) => {}
    }
}
