//! The settings of walpool: each with its unit, default, limits and meaning, in one table.
//! Owns `Config`, the part that the engine obeys. Must not know who uses it, nor where a value came from.

use std::thread;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use SettingValue::{Count, Seconds, Switch, Text};

/// What a setting is measured in, and so which `SettingValue` it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A whole number of things: `SettingValue::Count`.
    Count,
    /// Seconds: `SettingValue::Seconds`, or `SettingValue::Count` for whole ones.
    Duration,
    /// A whole number of bytes: `SettingValue::Count`.
    Bytes,
    /// On or off: `SettingValue::Switch`.
    Switch,
    /// Permissions of a file, as for `chmod`: `SettingValue::Count`.
    Mode,
    /// One of these words: `SettingValue::Text`.
    Choice(&'static [&'static str]),
    /// Any text: `SettingValue::Text`.
    Text,
}

/// The value of a setting, outside of `Config`.
#[derive(Clone, Debug, PartialEq)]
pub enum SettingValue {
    /// A count, a number of bytes, or permissions.
    Count(u64),
    /// A duration.
    Seconds(f64),
    /// On or off.
    Switch(bool),
    /// A word or a text.
    Text(String),
}

impl SettingValue {
    fn number(&self) -> Option<f64> {
        match self {
            Count(number) => Some(*number as f64), // limits end at 2^40: no digit of theirs is lost
            Seconds(number) => Some(*number),
            Switch(_) | Text(_) => None,
        }
    }
}

/// One row of the table of settings.
#[derive(Debug)]
pub struct Setting {
    /// Its keyword; also its key in a URL and, in capitals after `WALPOOL_`, its environment variable.
    pub name: &'static str,
    /// What it is measured in.
    pub unit: Unit,
    /// The least that is accepted; None where the unit has no order.
    pub minimum: Option<SettingValue>,
    /// The most that is accepted; None where the unit has no order.
    pub maximum: Option<SettingValue>,
    /// What it means.
    pub doc: &'static str,
    get: fn(&Config) -> Option<SettingValue>,
    set: fn(&mut Config, &SettingValue) -> Option<()>,
}

impl Setting {
    /// What holds where nothing is given; None if that is nothing. For `readers` it depends on the machine.
    pub fn default_value(&self) -> Option<SettingValue> {
        (self.get)(&Config::default())
    }

    /// Write a value for a person, in the unit of this setting: `64 MiB`, `30 s`, `0600`, `on`.
    pub fn show(&self, value: &SettingValue) -> String {
        match (self.unit, value) {
            (Unit::Bytes, Count(bytes)) => show_bytes(*bytes),
            (Unit::Mode, Count(mode)) => format!("{mode:04o}"),
            (Unit::Duration, Count(seconds)) => format!("{seconds} s"),
            (Unit::Duration, Seconds(seconds)) => format!("{seconds} s"),
            (_, Count(number)) => format!("{number}"),
            (_, Seconds(number)) => format!("{number}"),
            (_, Switch(is_on)) => if *is_on { "on" } else { "off" }.to_owned(),
            (_, Text(text)) => format!("{text:?}"),
        }
    }

    /// What this setting takes, for a person.
    pub fn accepted(&self) -> String {
        let what = match self.unit {
            Unit::Count => "a whole number",
            Unit::Duration => "a duration",
            Unit::Bytes => "a size",
            Unit::Switch => "on or off",
            Unit::Mode => "permissions",
            Unit::Choice(words) => return words.join(" or "),
            Unit::Text => "a text",
        };
        let (Some(minimum), Some(maximum)) = (&self.minimum, &self.maximum) else { return what.to_owned() };
        format!("{what} from {} to {}", self.show(minimum), self.show(maximum))
    }

    fn accepts(&self, value: &SettingValue) -> bool {
        match (self.unit, value) {
            (Unit::Count | Unit::Bytes | Unit::Mode | Unit::Duration, Count(_)) | (Unit::Duration, Seconds(_)) => {
                self.is_within_limits(value)
            }
            (Unit::Switch, Switch(_)) | (Unit::Text, Text(_)) => true,
            (Unit::Choice(words), Text(word)) => words.contains(&word.as_str()),
            _ => false,
        }
    }

    fn is_within_limits(&self, value: &SettingValue) -> bool {
        let limit = |limit: &Option<SettingValue>| limit.as_ref().and_then(SettingValue::number);
        let number = value.number(); // a NaN is neither above the one nor below the other
        limit(&self.minimum) <= number && number <= limit(&self.maximum)
    }

    fn refuse(&self, value: &SettingValue) -> Error {
        let (name, value, accepted) = (self.name, self.show(value), self.accepted());
        Error::new(Kind::Config, format!("{name} = {value} is refused: give {accepted}"))
    }
}

fn show_bytes(bytes: u64) -> String {
    for (unit, name) in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}

/// When a commit is acknowledged: `PRAGMA synchronous`, <https://www.sqlite.org/pragma.html#pragma_synchronous>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    /// When the disk has it: it survives a power loss.
    Full,
    /// When the operating system has it: it survives a crash of the process only.
    Normal,
}

impl Synchronous {
    const ALL: [Synchronous; 2] = [Synchronous::Full, Synchronous::Normal];
    const NAMES: [&str; 2] = [Synchronous::ALL[0].name(), Synchronous::ALL[1].name()];

    /// The word for it, in settings and in the PRAGMA.
    pub const fn name(self) -> &'static str {
        match self {
            Synchronous::Full => "full",
            Synchronous::Normal => "normal",
        }
    }
}

/// How a field of `Config` goes out as a `SettingValue` and comes in.
trait Field: Sized {
    fn to_value(&self) -> SettingValue;
    /// None if the value is of another kind, or does not fit.
    fn from_value(value: &SettingValue) -> Option<Self>;
}

impl Field for u64 {
    fn to_value(&self) -> SettingValue {
        Count(*self)
    }

    fn from_value(value: &SettingValue) -> Option<Self> {
        if let Count(number) = value { Some(*number) } else { None }
    }
}

impl Field for u32 {
    fn to_value(&self) -> SettingValue {
        u64::from(*self).to_value()
    }

    fn from_value(value: &SettingValue) -> Option<Self> {
        u32::try_from(u64::from_value(value)?).ok()
    }
}

impl Field for bool {
    fn to_value(&self) -> SettingValue {
        Switch(*self)
    }

    fn from_value(value: &SettingValue) -> Option<Self> {
        if let Switch(is_on) = value { Some(*is_on) } else { None }
    }
}

impl Field for Duration {
    fn to_value(&self) -> SettingValue {
        Seconds(self.as_secs_f64())
    }

    fn from_value(value: &SettingValue) -> Option<Self> {
        Duration::try_from_secs_f64(value.number()?).ok()
    }
}

impl Field for Synchronous {
    fn to_value(&self) -> SettingValue {
        Text(self.name().to_owned())
    }

    fn from_value(value: &SettingValue) -> Option<Self> {
        let Text(word) = value else { return None };
        Synchronous::ALL.into_iter().find(|choice| choice.name() == word)
    }
}

/// Make `Config`, its `Default` and the table of one list. A row reads: doc, name, type, default, unit, least, most.
/// What stands under `elsewhere` is obeyed outside the engine: it is in the table, and `Config` has no field for it.
macro_rules! settings {
    (
        engine {$(
            $(#[doc = $doc:literal])+
            $name:ident: $type:ty = $default:expr, $unit:expr $(, $minimum:expr, $maximum:expr)?;
        )+}
        elsewhere {$(
            $(#[doc = $other_doc:literal])+
            $other:ident = $other_default:expr, $other_unit:expr;
        )+}
    ) => {
        /// What the engine obeys; made of the defaults, then `set`.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {$(
            $(#[doc = $doc])+
            pub $name: $type,
        )+}

        impl Default for Config {
            fn default() -> Self {
                Config { $($name: $default,)+ }
            }
        }

        static TABLE: &[Setting] = &[
            $(Setting {
                name: stringify!($name),
                unit: $unit,
                minimum: settings!(@limit $($minimum)?),
                maximum: settings!(@limit $($maximum)?),
                doc: concat!($($doc,)+).trim_ascii_start(),
                get: |config| Some(config.$name.to_value()),
                set: |config, value| Field::from_value(value).map(|value| config.$name = value),
            },)+
            $(Setting {
                name: stringify!($other),
                unit: $other_unit,
                minimum: None,
                maximum: None,
                doc: concat!($($other_doc,)+).trim_ascii_start(),
                get: |_| $other_default,
                set: |_, _| Some(()),
            },)+
        ];
    };
    (@limit) => { None };
    (@limit $limit:expr) => { Some($limit) };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

// The limits refuse what is a mistake in the unit or cannot work, no more:
// - a size ends at 1 TiB, more than memory; in KiB it fits the i32 that PRAGMA cache_size takes. A cache or a WAL has
//   room for 16 pages of 4 KiB at least;
// - a duration ends at a day; in milliseconds it fits the i32 that SQLite takes. It begins at 1 ms, the step in which
//   SQLite waits, or at 0 where that has a meaning of its own;
// - a reader takes two descriptors, the file and its WAL: 256 of them stay under the usual 1024 of a process.
const NO_WAIT: SettingValue = Seconds(0.0);
const SHORTEST: SettingValue = Seconds(0.001);
const LONGEST: SettingValue = Seconds(86_400.0);
const LARGEST: SettingValue = Count(TIB);

settings! {
    engine {
        /// How many read-only connections there are; by default one for each CPU that this process may use, 2 to 64.
        readers: u32 = usable_cpus().clamp(2, 64), Unit::Count, Count(1), Count(256);
        /// What an acknowledged write survives: `full` a power loss, `normal` a crash of the process only.
        synchronous: Synchronous = Synchronous::Full, Unit::Choice(&Synchronous::NAMES);
        /// How long a caller waits for a reader.
        checkout_timeout: Duration = Duration::from_secs(30), Unit::Duration, SHORTEST, LONGEST;
        /// How long a caller waits until its job is taken into a group or its lease begins.
        write_timeout: Duration = Duration::from_secs(60), Unit::Duration, SHORTEST, LONGEST;
        /// How long a transaction may hold the writer, or a read its snapshot, before it is rolled back and revoked.
        transaction_timeout: Duration = Duration::from_secs(30), Unit::Duration, SHORTEST, LONGEST;
        /// How long a job waits for another process's lock; 0 does not wait.
        busy_timeout: Duration = Duration::from_secs(30), Unit::Duration, NO_WAIT, LONGEST;
        /// How many jobs may stand in the queue, beyond which `QueueFull` is raised at once; 0 is no limit.
        max_waiting: u64 = 0, Unit::Count, Count(0), Count(u32::MAX as u64);
        /// How many bytes of parameters may stand in the queue; beyond it callers are held back.
        max_waiting_bytes: u64 = 256 * MIB, Unit::Bytes, Count(KIB), LARGEST;
        /// How many jobs one COMMIT may carry.
        max_group: u32 = 512, Unit::Count, Count(1), Count(65_536);
        /// How many bytes of parameters one COMMIT may carry; a larger job runs alone.
        max_group_bytes: u64 = 8 * MIB, Unit::Bytes, Count(KIB), LARGEST;
        /// Whether foreign keys are enforced.
        foreign_keys: bool = true, Unit::Switch;
        /// The permissions of files that walpool creates, less what the umask takes; their owner must be able to read and write.
        file_mode: u32 = 0o600, Unit::Mode, Count(0o600), Count(0o777);
        /// Whether a file that `walpool migrate --retire` has marked may be written; else it is open to read only.
        write_retired: bool = false, Unit::Switch;
        /// The page cache of one connection.
        cache_size: u64 = 16 * MIB, Unit::Bytes, Count(64 * KIB), LARGEST;
        /// How many prepared statements one connection keeps; 0 keeps none.
        statement_cache: u32 = 128, Unit::Count, Count(0), Count(65_536);
        /// The memory that sketches for vector search may take; beyond it, those of the space searched least recently are dropped.
        sketch_memory: u64 = GIB, Unit::Bytes, Count(0), LARGEST;
        /// The size of the WAL past which checkpoints work harder and a warning is logged.
        wal_limit: u64 = 64 * MIB, Unit::Bytes, Count(64 * KIB), LARGEST;
        /// How long a job, lease or read may take before it is logged with its SQL; 0 logs each.
        slow_threshold: Duration = Duration::from_secs(1), Unit::Duration, NO_WAIT, LONGEST;
    }
    elsewhere {
        /// Where the integrations store.
        url = None, Unit::Text;
        /// Whether `install()` does nothing.
        disable = Some(Switch(false)), Unit::Switch;
    }
}

/// Every setting, in the order of the documentation.
pub fn settings() -> &'static [Setting] {
    TABLE
}

impl Config {
    /// Set one setting by name. One that the engine does not obey (`url`, `disable`) is checked and changes nothing.
    ///
    /// # Errors
    /// `Kind::Config` if the name is unknown, or the value is of the wrong kind or past a limit; then nothing changes.
    pub fn set(&mut self, name: &str, value: &SettingValue) -> Result<()> {
        let Some(setting) = TABLE.iter().find(|setting| setting.name == name) else {
            let known = TABLE.iter().map(|setting| setting.name).collect::<Vec<_>>().join(", ");
            return Err(Error::new(Kind::Config, format!("no setting is called {name:?}: there are {known}")));
        };
        let set = if setting.accepts(value) { (setting.set)(self, value) } else { None };
        set.ok_or_else(|| setting.refuse(value))
    }

    /// Check each field against its limits, for a `Config` whose fields were assigned directly.
    ///
    /// # Errors
    /// `Kind::Config` for the first one past its limits.
    pub fn validate(&self) -> Result<()> {
        TABLE.iter().try_for_each(|setting| match (setting.get)(self) {
            Some(value) if !setting.accepts(&value) => Err(setting.refuse(&value)),
            _ => Ok(()),
        })
    }

    /// The first of the settings called `names` that differs: its name, its value here and its value in `other`, as
    /// `Setting::show` writes them.
    pub fn first_difference(&self, other: &Config, names: &[&str]) -> Option<(&'static str, String, String)> {
        TABLE.iter().filter(|setting| names.contains(&setting.name)).find_map(|setting| {
            let (mine, theirs) = ((setting.get)(self)?, (setting.get)(other)?);
            (mine != theirs).then(|| (setting.name, setting.show(&mine), setting.show(&theirs)))
        })
    }
}

/// How many CPUs this process may use; the affinity mask and the quota of the cgroup are honoured.
fn usable_cpus() -> u32 {
    thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, value: &SettingValue) -> String {
        let mut config = Config::default();
        let error = config.set(name, value).unwrap_err();
        assert_eq!((error.kind, config), (Kind::Config, Config::default()));
        error.message
    }

    fn text(word: &str) -> SettingValue {
        Text(word.to_owned())
    }

    #[test]
    fn defaults_are_accepted_and_documented() {
        let config = Config::default();
        config.validate().unwrap();
        assert!((2..=64).contains(&config.readers));
        for setting in settings() {
            assert!(setting.default_value().is_none_or(|value| setting.accepts(&value)), "{}", setting.name);
            assert!(!setting.doc.starts_with(' ') && setting.doc.ends_with('.'), "{}", setting.doc);
        }
    }

    #[test]
    fn limits_are_accepted_and_what_lies_past_them_is_refused() {
        for setting in settings() {
            for (limit, step) in [(&setting.minimum, -1), (&setting.maximum, 1)] {
                let Some(limit) = limit else { continue };
                Config::default().set(setting.name, limit).unwrap();
                let past = match limit {
                    Count(number) => number.checked_add_signed(step).map(Count),
                    _ => limit.number().map(|number| Seconds(number + 0.0005 * step as f64)),
                };
                let Some(past) = past else { continue }; // nothing is less than a count of 0
                assert!(refusal(setting.name, &past).contains(&setting.show(limit)), "{}", setting.name);
            }
        }
    }

    #[test]
    fn what_is_set_is_what_the_engine_reads() {
        let mut config = Config::default();
        for (name, value) in [
            ("readers", Count(3)),
            ("synchronous", text("normal")),
            ("busy_timeout", Seconds(0.25)),
            ("write_timeout", Count(5)),
            ("max_waiting", Count(10)),
            ("foreign_keys", Switch(false)),
            ("file_mode", Count(0o640)),
        ] {
            config.set(name, &value).unwrap();
        }
        let expected = Config {
            readers: 3,
            synchronous: Synchronous::Normal,
            busy_timeout: Duration::from_millis(250),
            write_timeout: Duration::from_secs(5),
            max_waiting: 10,
            foreign_keys: false,
            file_mode: 0o640,
            ..Config::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn refusal_names_the_setting_the_value_and_what_is_accepted() {
        for (name, value, message) in [
            ("readers", Count(0), "readers = 0 is refused: give a whole number from 1 to 256"),
            ("readers", Seconds(1.5), "readers = 1.5 is refused: give a whole number from 1 to 256"),
            ("cache_size", Count(1000), "cache_size = 1000 bytes is refused: give a size from 64 KiB to 1 TiB"),
            ("cache_size", text("big"), "cache_size = \"big\" is refused: give a size from 64 KiB to 1 TiB"),
            ("synchronous", text("off"), "synchronous = \"off\" is refused: give full or normal"),
            ("foreign_keys", Count(2), "foreign_keys = 2 is refused: give on or off"),
            ("file_mode", Count(0o400), "file_mode = 0400 is refused: give permissions from 0600 to 0777"),
            ("write_timeout", Count(0), "write_timeout = 0 s is refused: give a duration from 0.001 s to 86400 s"),
            ("url", Switch(true), "url = on is refused: give a text"),
        ] {
            assert_eq!(refusal(name, &value), message);
        }
    }

    #[test]
    fn durations_that_are_no_duration_are_refused() {
        for seconds in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.001, f64::MAX] {
            refusal("busy_timeout", &Seconds(seconds));
        }
    }

    #[test]
    fn zero_is_a_duration_only_where_it_means_something() {
        let takes_zero = |setting: &&Setting| setting.unit == Unit::Duration && setting.accepts(&Seconds(0.0));
        let names: Vec<_> = settings().iter().filter(takes_zero).map(|setting| setting.name).collect();
        assert_eq!(names, ["busy_timeout", "slow_threshold"]);
    }

    #[test]
    fn unknown_name_is_refused_with_the_known_ones() {
        let message = refusal("reader", &Count(3));
        assert!(message.starts_with("no setting is called \"reader\": there are readers, synchronous, "), "{message}");
    }

    #[test]
    fn settings_of_others_are_checked_and_change_nothing() {
        let mut config = Config::default();
        config.set("url", &text("postgresql://host/db")).unwrap();
        config.set("disable", &Switch(true)).unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn validate_finds_a_field_that_was_assigned_past_its_limits() {
        let error = Config { max_group: 0, ..Config::default() }.validate().unwrap_err();
        assert_eq!(error.message, "max_group = 0 is refused: give a whole number from 1 to 65536");
    }

    #[test]
    fn only_the_named_settings_are_compared() {
        let mine = Config { readers: 3, cache_size: MIB, ..Config::default() };
        let theirs = Config { readers: 4, cache_size: 1000, ..Config::default() };
        assert_eq!(mine.first_difference(&theirs, &["synchronous", "url"]), None);
        let difference = mine.first_difference(&theirs, &["cache_size", "synchronous"]);
        assert_eq!(difference, Some(("cache_size", "1 MiB".to_owned(), "1000 bytes".to_owned())));
    }
}
