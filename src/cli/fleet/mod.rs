//! `cellgate fleet`: what stations have, and bringing them a new model in waves.

mod broker;
mod lines;
mod offer;
mod rollout;
mod status;
mod watch;

use clap::Subcommand;

/// See what the stations of a broker have, and bring them a new model in waves.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  cellgate fleet status --host broker
  cellgate fleet rollout line1-7.cgb --keys keys.cgk --group pilot --chunks --waves 1,10,50,100 --soak 30 --host broker
  cellgate fleet watch --host broker           in another window
  cellgate fleet halt --group pilot --host broker

docs/fleet.md says what happens at the stations, and what to do when a rollout halts.")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Status(status::Args),
    Watch(watch::Args),
    Offer(Box<offer::Offering>),
    Rollout(Box<rollout::Args>),
    /// Stop an offer: who has not put the model in force yet stops, and nobody begins.
    Halt(offer::Group),
    /// Take an offer and all chunks of the group away from the broker. Stations keep what they have.
    Withdraw(offer::Group),
}

/// Looks at the fleet, or brings it something.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Status(args) => status::run(args),
        Action::Watch(args) => watch::run(args),
        Action::Offer(args) => offer::run(*args),
        Action::Rollout(args) => rollout::run(*args),
        Action::Halt(args) => offer::halt(args),
        Action::Withdraw(args) => offer::withdraw(args),
    }
}
