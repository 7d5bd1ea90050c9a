//! Which broker.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::Config;
use crate::fleet::connection::{FleetError, Listener};
use crate::fleet::view::{self, Name, Station, View};
use crate::outbox::mqtt::{MqttConfig, TlsConfig};

/// The broker: the words are those of `[mqtt]` in a station's configuration.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Broker")]
pub struct Broker {
    /// Take all of it from the `[mqtt]` of a station's configuration; what else is given here counts more.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Name or address of the broker.
    #[arg(long, value_name = "HOST", env = "CELLGATE_BROKER")]
    host: Option<String>,

    /// Its port [default: 1883; 8883 with --tls-ca].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// User name.
    #[arg(long, value_name = "NAME")]
    username: Option<String>,

    /// File whose first line is the password.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Environment variable that holds the password.
    #[arg(long, value_name = "VARIABLE", conflicts_with = "password_file")]
    password_env: Option<String>,

    /// PEM file of the authorities that sign the broker's certificate: the connection is encrypted.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// Our certificate, if the broker asks for one.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_certificate: Option<PathBuf>,

    /// The private key of our certificate.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

impl Broker {
    /// What the connection needs to know.
    pub fn settings(&self) -> anyhow::Result<MqttConfig> {
        let mut mqtt = match &self.config {
            Some(path) => Config::load(path)?.mqtt,
            None => MqttConfig::default(),
        };
        if let Some(ca) = &self.tls_ca {
            let (certificate, key) = (self.tls_certificate.clone(), self.tls_key.clone());
            mqtt.tls = Some(TlsConfig { ca: ca.clone(), certificate, key });
            mqtt.port = 8883;
        }
        let given = |ours: &Option<String>, theirs: &mut String| ours.iter().for_each(|text| text.clone_into(theirs));
        given(&self.host, &mut mqtt.host);
        given(&self.username, &mut mqtt.username);
        mqtt.port = self.port.unwrap_or(mqtt.port);
        if self.password_file.is_some() || self.password_env.is_some() {
            (mqtt.password_file, mqtt.password_env) = (self.password_file.clone(), self.password_env.clone());
        }
        if mqtt.host.is_empty() {
            bail!("no broker is named: give --host, --config or the environment variable CELLGATE_BROKER");
        }
        mqtt.validate().map_err(anyhow::Error::msg).context("the broker's settings")?;
        Ok(mqtt)
    }
}

/// Which stations.
#[derive(Debug, Clone, clap::Args)]
pub struct Filter {
    /// Only stations of this group.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,

    /// Only stations of this line.
    #[arg(long, value_name = "NAME")]
    line: Option<String>,
}

impl Filter {
    /// Whether it is one of them.
    pub fn takes(&self, name: &Name, station: &Station) -> bool {
        self.line.as_ref().is_none_or(|line| *line == name.line)
            && self.group.as_ref().is_none_or(|group| station.is_in(group))
    }

    /// Whether offers to the group are of interest.
    pub fn takes_group(&self, group: &str) -> bool {
        self.group.as_ref().is_none_or(|own| own == group)
    }
}

/// A connection, and all that the broker keeps.
pub fn read(mqtt: &MqttConfig) -> Result<(Listener, View), FleetError> {
    let mut view = View::default();
    let listener = Listener::open(mqtt, &view::topics(), |heard| _ = view.take(heard))?;
    Ok((listener, view))
}

/// Pause before a lost broker is asked again.
pub const RETRY: Duration = Duration::from_secs(2);
