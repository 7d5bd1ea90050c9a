//! The command line: one file a verb. Printing and progress live here only.

mod backbone;
mod calibrate;
mod data;
mod eval;
mod fit;
mod merge;
mod model;
mod shared;
mod synth;

use clap::{Parser, Subcommand};

/// Electroluminescence inspection of solar cells: from an EL image to a verdict.
#[derive(Debug, Parser)]
#[command(name = "cellgate", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Data(data::Args),
    Synth(synth::Args),
    Fit(Box<fit::Args>),
    Merge(merge::Args),
    Calibrate(calibrate::Args),
    Eval(Box<eval::Args>),
    Model(model::Args),
    Backbone(backbone::Args),
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// What went wrong, as a chain that names what was attempted, the file and the remedy.
    pub fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::Data(args) => data::run(args),
            Verb::Synth(args) => synth::run(args),
            Verb::Fit(args) => fit::run(*args),
            Verb::Merge(args) => merge::run(args),
            Verb::Calibrate(args) => calibrate::run(args),
            Verb::Eval(args) => eval::run(*args),
            Verb::Model(args) => model::run(args),
            Verb::Backbone(args) => backbone::run(args),
        }
    }
}
