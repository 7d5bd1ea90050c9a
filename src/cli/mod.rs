//! The command line: one file a verb. Printing and progress live here only.

mod backbone;

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
    Backbone(backbone::Args),
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// What went wrong, as a chain that names what was attempted, the file and the remedy.
    pub fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::Backbone(args) => backbone::run(args),
        }
    }
}
