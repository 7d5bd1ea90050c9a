//! Cargo wants a source; only the headers of a dependency are used.
