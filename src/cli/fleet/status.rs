//! `cellgate fleet status`.

use super::broker::{self, Broker, Filter};
use super::lines;

/// Say what every station has, how far its update is, and what is offered: as the broker keeps it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    broker: Broker,
}

/// Prints it.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (_, view) = broker::read(&args.broker.settings()?)?;
    if args.json {
        println!("{}", lines::json(&view, &args.filter));
    } else {
        print!("{}\n{}", lines::table(&view, &args.filter, usize::MAX), lines::summary(&view, &args.filter));
    }
    Ok(())
}
