//! What the connection to the broker needs to know.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The broker, and what the station is called there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MqttConfig {
    /// Name or address of the broker; empty: verdicts are kept and not delivered. Default: empty.
    pub host: String,
    /// Port, 1 to 65535. Default: 1883; 8883 is usual with TLS.
    pub port: u16,
    /// The line, second word of every topic: 1 to 64 bytes without `/`, `+`, `#`. Default: `line`.
    pub line: String,
    /// The station, third word of every topic: as `line`. Default: `station`.
    pub station: String,
    /// Name of this client at the broker, at most 128 bytes; no two clients may have the same. Empty:
    /// `cellgate-<line>-<station>`. Default: empty.
    pub client_id: String,
    /// Seconds of silence after which the broker is asked whether it is there, 1 to 3600; twice that without an answer and
    /// the connection is made anew. Default: 10.
    pub keep_alive_s: u16,
    /// Seconds in which a connection must stand, 1 to 60. Default: 5.
    pub connect_timeout_s: u16,
    /// Seconds in which the broker must acknowledge a verdict, 1 to 60; then the connection is made anew and the verdict
    /// sent again. Default: 5.
    pub ack_timeout_s: u16,
    /// Longest pause between attempts to connect in seconds, 1 to 600; they begin with a fifth of a second and double.
    /// Default: 5.
    pub retry_max_s: u16,
    /// User name; empty: none. Default: empty.
    pub username: String,
    /// File whose first line is the password. Default: none.
    pub password_file: Option<PathBuf>,
    /// Name of the environment variable that holds the password, if there is no file. Default: none.
    pub password_env: Option<String>,
    /// TLS; none: the connection is not encrypted. Default: none.
    pub tls: Option<TlsConfig>,
    /// How verdicts are written: `json` or `sparkplug`. Default: `json`.
    pub payload: PayloadKind,
    /// Names for Sparkplug B, with `payload = "sparkplug"`.
    pub sparkplug: SparkplugConfig,
}

/// Certificates, each a PEM file. They are read at each connection, so that new ones need no restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsConfig {
    /// The authority or authorities that sign the broker's certificate; `/etc/ssl/certs/ca-certificates.crt` for public ones.
    pub ca: PathBuf,
    /// The station's certificate and its chain, if the broker asks for one. Default: none.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// The private key of `certificate`. Default: none.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

/// How verdicts are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadKind {
    /// One flat JSON object each, on `cellgate/<line>/<station>/verdict`.
    #[default]
    Json,
    /// Sparkplug B, on `spBv1.0/<group>/DDATA/<node>/<device>`.
    Sparkplug,
}

/// Names for Sparkplug B: each 1 to 64 bytes without `/`, `+`, `#`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SparkplugConfig {
    /// The group. Empty: the line. Default: empty.
    pub group: String,
    /// The edge node. Empty: the station. Default: empty.
    pub node: String,
    /// The device below it that gives the verdicts. Default: `inspection`.
    pub device: String,
    /// The host application without which nothing is delivered; empty: any broker will do. Default: empty.
    pub primary_host: String,
}

impl Default for SparkplugConfig {
    fn default() -> Self {
        Self { group: String::new(), node: String::new(), device: "inspection".into(), primary_host: String::new() }
    }
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 1883,
            line: "line".into(),
            station: "station".into(),
            client_id: String::new(),
            keep_alive_s: 10,
            connect_timeout_s: 5,
            ack_timeout_s: 5,
            retry_max_s: 5,
            username: String::new(),
            password_file: None,
            password_env: None,
            tls: None,
            payload: PayloadKind::Json,
            sparkplug: SparkplugConfig::default(),
        }
    }
}

/// A word of a topic.
fn is_word(word: &str) -> bool {
    !word.is_empty() && word.len() <= 64 && !word.chars().any(|c| matches!(c, '/' | '+' | '#') || c.is_control())
}

impl MqttConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Which key is wrong, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let names = &self.sparkplug;
        for (key, word, may_be_empty) in [
            ("line", &self.line, false),
            ("station", &self.station, false),
            ("sparkplug.group", &names.group, true),
            ("sparkplug.node", &names.node, true),
            ("sparkplug.device", &names.device, false),
            ("sparkplug.primary-host", &names.primary_host, true),
        ] {
            if !(is_word(word) || may_be_empty && word.is_empty()) {
                return Err(format!("{key} = {word:?}: 1 to 64 bytes without /, + and # are allowed"));
            }
        }
        for (key, value, max) in [
            ("keep-alive-s", self.keep_alive_s, 3600),
            ("connect-timeout-s", self.connect_timeout_s, 60),
            ("ack-timeout-s", self.ack_timeout_s, 60),
            ("retry-max-s", self.retry_max_s, 600),
            ("port", self.port, u16::MAX),
        ] {
            if value == 0 || value > max {
                return Err(format!("{key} = {value}: 1 to {max} are allowed"));
            }
        }
        if self.client_id.len() > 128 || self.client_id.chars().any(char::is_control) {
            return Err(format!(
                "client-id = {:?}: at most 128 bytes without control characters are allowed",
                self.client_id
            ));
        }
        if self.host.chars().any(|c| c.is_control() || c.is_whitespace()) || self.host.len() > 255 {
            return Err(format!("host = {:?}: the name or address of a broker is needed, without a scheme", self.host));
        }
        if self.host.contains("://") {
            return Err(format!("host = {:?}: give the name alone; `port` and `tls` have their own keys", self.host));
        }
        if self.username.is_empty() && (self.password_file.is_some() || self.password_env.is_some()) {
            return Err("username = \"\": a password needs a user name".into());
        }
        if let Some(tls) = &self.tls
            && tls.certificate.is_some() != tls.key.is_some()
        {
            return Err("tls.certificate and tls.key: give both or neither".into());
        }
        Ok(())
    }

    /// The client's name at the broker.
    #[must_use]
    pub fn client(&self) -> String {
        match self.client_id.as_str() {
            "" => format!("cellgate-{}-{}", self.line, self.station),
            given => given.into(),
        }
    }

    /// A topic of this station.
    #[must_use]
    pub fn topic(&self, last: &str) -> String {
        format!("cellgate/{}/{}/{last}", self.line, self.station)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named_with_what_is_allowed() {
        let good = MqttConfig::default();
        good.validate().unwrap();
        for (text, expected) in [
            ("line = \"a/b\"", "line = \"a/b\": 1 to 64"),
            ("station = \"\"", "station = \"\": 1 to 64"),
            ("keep-alive-s = 0", "keep-alive-s = 0: 1 to 3600"),
            ("ack-timeout-s = 61", "ack-timeout-s = 61: 1 to 60"),
            ("port = 0", "port = 0: 1 to 65535"),
            ("host = \"mqtt://x\"", "give the name alone"),
            ("password-env = \"X\"", "a password needs a user name"),
            ("[tls]\nca = \"ca.pem\"\nkey = \"k\"", "give both or neither"),
            ("[sparkplug]\ndevice = \"#\"", "sparkplug.device = \"#\""),
        ] {
            let error = toml::from_str::<MqttConfig>(text).unwrap().validate().unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(toml::from_str::<MqttConfig>("hots = \"x\"").is_err());
        assert_eq!(good.client(), "cellgate-line-station");
        assert_eq!(good.topic("verdict"), "cellgate/line/station/verdict");
    }
}
