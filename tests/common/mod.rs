//! What the integration tests share.

use std::io::Write;

/// Says on the real stderr, which libtest does not capture, that `test` needs `need`; with `CELLGATE_REQUIRE_ALL` set,
/// fails instead.
///
/// # Panics
/// If `CELLGATE_REQUIRE_ALL` is set.
pub fn skip(test: &str, need: &str) {
    assert!(std::env::var_os("CELLGATE_REQUIRE_ALL").is_none(), "{test} was to run, but needs {need}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {need}");
}
