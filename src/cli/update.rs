//! `cellgate update`: bundles into a station's state folder.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;

use super::inspect::batch::Batch;
use super::shared::Engine;
use crate::backbone::ResNet18;
use crate::clock::Date;
use crate::model::Model;
use crate::update::agent::Inbox;
use crate::update::bundle::{KEY_SET_MAGIC, KeySet, Software, Station};
use crate::update::disk::Folder;
use crate::update::install::{NotProven, Staged};
use crate::update::prove;
use crate::update::slots::{Phase, Slot, Slots};

/// Bring a signed model to this station, look at its state, go back to the model before it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  cellgate update install keys.cgk --trust       once: whose signatures count here
  cellgate update install line1-7.cgb --line line1 --station el-07
  cellgate update status
  cellgate update rollback")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Args)]
struct State {
    /// The state folder.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cellgate/update", env = "CELLGATE_UPDATE_STATE")]
    state: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take a bundle (.cgb): check it, prove it by its golden frames and put it in force on probation; or a key set (.cgk).
    ///
    /// Where a station runs with this state folder, it is told to do so, by what its own configuration says of line, station
    /// and groups.
    Install(Box<Install>),
    /// Say which model is in force, and how far an update is. Nothing is changed.
    Status {
        #[command(flatten)]
        state: State,

        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// End the probation: the model in force is good.
    Confirm {
        #[command(flatten)]
        state: State,
    },
    /// Put the model before this one in force again.
    Rollback {
        #[command(flatten)]
        state: State,
    },
}

#[derive(Debug, clap::Args)]
struct Install {
    /// The bundle or key set.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    state: State,

    /// Trust this key set from now on; only for a state folder that trusts none yet.
    #[arg(long)]
    trust: bool,

    /// This station's line.
    #[arg(long, value_name = "NAME", default_value = "")]
    line: String,

    /// This station's name.
    #[arg(long, value_name = "NAME", default_value = "")]
    station: String,

    /// A group that this station belongs to; may be given again.
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,

    #[command(flatten)]
    engine: Engine,
}

/// Updates.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Install(args) => install(*args),
        Action::Status { state, json } => status(&state.state, json),
        Action::Confirm { state } => {
            let Some(mut slots) = open(&state.state)? else {
                return tell(&state.state, "cli.confirm", &mut std::io::empty());
            };
            slots.confirm()?;
            println!("{}", slots.record().last);
            Ok(())
        }
        Action::Rollback { state } => {
            let Some(mut slots) = open(&state.state)? else {
                return tell(&state.state, "cli.rollback", &mut std::io::empty());
            };
            // Whether the station has a model of its own to go back to is known to it alone.
            slots.rollback("asked for")?;
            println!("{}", slots.record().last);
            Ok(())
        }
    }
}

/// Has the station that runs beside do it, and waits for what it says.
fn tell(state: &Path, name: &str, content: &mut impl Read) -> anyhow::Result<()> {
    let inbox = Inbox::new(state);
    let context = || format!("telling the station that works in {}", state.display());
    let errand = inbox.send(name, content).with_context(context)?;
    println!("a station is running: it was told, and answers when it is done (Ctrl-C: it goes on all the same)");
    loop {
        match inbox.answer(&errand).with_context(context)? {
            Some((true, text)) => {
                println!("{text}");
                return Ok(());
            }
            Some((false, text)) => bail!("{text}"),
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn folder(path: &Path) -> anyhow::Result<Folder> {
    Folder::new(path).with_context(|| format!("opening the state folder {}", path.display()))
}

/// The state folder; none if a running station works in it.
fn open(path: &Path) -> anyhow::Result<Option<Slots<Folder>>> {
    if !path.is_dir() {
        bail!("there is no state folder {}: set it up by `cellgate update install KEYS.cgk --trust`", path.display());
    }
    let context = || format!("opening the state folder {}", path.display());
    match Folder::new(path) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        folder => Slots::open(folder.with_context(context)?).with_context(context).map(Some),
    }
}

fn install(args: Install) -> anyhow::Result<()> {
    let context = || format!("installing {}", args.file.display());
    let mut magic = [0; 8];
    // A file that is shorter is refused where it is read.
    let _ = File::open(&args.file).with_context(context)?.read_exact(&mut magic);
    let mut reader = BufReader::new(File::open(&args.file).with_context(context)?);
    let state = &args.state.state;
    if magic == KEY_SET_MAGIC {
        if args.trust {
            let (keys, _) = KeySet::trust(&mut reader).with_context(context)?;
            let slots = Slots::set_up(folder(state)?, keys).with_context(context)?;
            let keys = &slots.record().keys;
            println!("{} of these keys must sign from now on:", keys.threshold);
            keys.keys.iter().for_each(|key| println!("{key}"));
            return Ok(());
        }
        let Some(mut slots) = open(state)? else {
            return tell(state, "cli.cgk", &mut reader);
        };
        slots.rotate(&mut reader).with_context(context)?;
        println!("{}", slots.record().last);
        return Ok(());
    }
    if args.trust {
        bail!("--trust is for a key set (.cgk), {} is none", args.file.display());
    }
    let Some(mut slots) = open(state)? else {
        return tell(state, "cli.cgb", &mut reader);
    };
    let (network, _) = args.engine.weights()?;
    let station = Station {
        line: args.line.clone(),
        station: args.station.clone(),
        groups: args.group.clone(),
        software: Software::own(),
        backbone: network.identity().0,
    };
    let threads = args.engine.threads();
    let mut proven = 0;
    let manifest = slots
        .install(&mut reader, &station, Date::now().as_millis(), |folder, staged| {
            proven = prove_staged(folder, staged, &network, threads)
                .map_err(|error| NotProven::Refused(super::told(&error)))?;
            Ok(())
        })
        .with_context(context)?;
    slots.activate().with_context(context)?;
    println!("version {}: every byte checked, {proven} golden frames judged as expected", manifest.version);
    println!("{}", slots.record().last);
    Ok(())
}

fn prove_staged(folder: &Folder, staged: &Staged, network: &ResNet18, threads: usize) -> anyhow::Result<usize> {
    let model = Arc::new(Model::open(&folder.path(staged.model))?);
    let mut batch = Batch::new(&model, network, threads, 1)?;
    let mut golden = BufReader::new(File::open(folder.path(staged.golden)).context("opening the golden frames")?);
    Ok(prove::prove(&mut golden, batch.inspector())?)
}

fn status(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let record = Slots::look(&Folder::look(path)).with_context(|| format!("looking at {}", path.display()))?;
    let phase = match record.phase {
        Phase::Good => "good",
        Phase::Staging { .. } => "staging",
        Phase::Staged { .. } => "staged",
        Phase::Proved { .. } => "proved",
        Phase::Probation { .. } => "probation",
    };
    let slots = [Slot::A, Slot::B].map(|slot| (slot, record.slot(slot), record.active == Some(slot)));
    if as_json {
        let slots = slots.map(|(slot, fitted, active)| {
            json!({
                "slot": slot.to_string(), "in-force": active, "version": fitted.map(|f| f.version),
                "bytes": fitted.map(|f| f.bytes), "hash": fitted.map(|f| f.hash.to_string()),
            })
        });
        println!(
            "{}",
            json!({
                "phase": phase, "version-mark": record.version, "clock-mark": Date::from_millis(record.clock).to_string(),
                "key-set": record.keys.version, "slots": slots, "last": record.last,
            })
        );
        return Ok(());
    }
    for (slot, fitted, active) in slots {
        let text = fitted.map_or_else(
            || "empty".into(),
            |f| {
                format!(
                    "version {}, {:.3} MB, {:.12}, since {}",
                    f.version,
                    f.bytes as f64 / 1e6,
                    f.hash,
                    Date::from_millis(f.since)
                )
            },
        );
        println!("slot {slot}       {text}{}", if active { ", in force" } else { "" });
    }
    match record.phase {
        Phase::Probation { cells, invalid, rejected, starts, .. } => {
            println!("phase        probation: {cells} cells, {invalid} INVALID, {rejected} rejected, {starts} starts")
        }
        _ => println!("phase        {phase}"),
    }
    println!("marks        version {}, clock {}", record.version, Date::from_millis(record.clock));
    println!(
        "keys         set {}: {} of {} must sign",
        record.keys.version,
        record.keys.threshold,
        record.keys.keys.len()
    );
    println!("last         {}", record.last);
    Ok(())
}
