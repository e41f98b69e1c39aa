//! `portcullis schema`.

use clap::Args;

use super::ExitStatus;
use super::output::print;
use crate::schema::Document;

/// `portcullis schema policy|directory`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Which file the schema is of
    #[arg(value_enum)]
    pub document: Document,
}

/// Runs the verb.
pub fn run(args: &SchemaArgs) -> ExitStatus {
    print(&args.document.schema_text())
}
