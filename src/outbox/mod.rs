//! Verdicts on their way out: durable before they are announced, and kept until the broker has them.
