//! What was reported of devices, in `state.db`, so that it outlives the process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use portcullis_policy::Report;
use rusqlite::{Row, params};

use super::database::{Database, DatabaseError};
use crate::posture::{OfDevice, Reports};

/// The table of reports. Its methods block on the disk.
#[derive(Debug)]
pub struct ReportStore(Mutex<Database>);

impl ReportStore {
    /// Opens the table in the database at `path`.
    ///
    /// # Errors
    ///
    /// There is no such place, or what is there is no database of this release.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        Ok(Self(Mutex::new(Database::open(path)?)))
    }

    /// Every report in it. Rows that make no sense are left out.
    pub fn load(&self) -> Result<Reports, DatabaseError> {
        let mut database = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = database.connection();
        let mut statement = connection.prepare("SELECT device, key, fact, value, at, until FROM reports")?;
        let rows = statement.query_map([], |row| Ok(read(row)))?.collect::<Result<Vec<_>, _>>()?;
        let mut devices: BTreeMap<String, OfDevice> = BTreeMap::new();
        for (device, key, fact, report) in rows.into_iter().flatten() {
            let of = devices.entry(device).or_default();
            of.key = key;
            of.facts.insert(fact, report);
        }
        let mut reports = Reports::default();
        devices.into_iter().for_each(|(device, of)| reports.insert(&device, of));
        Ok(reports)
    }

    /// Writes what `reports` has of these devices in the place of what was there, all or nothing.
    pub fn save(&self, reports: &Reports, devices: &[impl AsRef<str>]) -> Result<(), DatabaseError> {
        let mut database = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = database.connection().transaction()?;
        {
            let mut delete = transaction.prepare("DELETE FROM reports WHERE device = ?")?;
            let mut put = transaction
                .prepare("INSERT INTO reports (device, key, fact, value, at, until) VALUES (?, ?, ?, ?, ?, ?)")?;
            for device in devices.iter().map(AsRef::as_ref) {
                delete.execute([device])?;
                let Some(OfDevice { key, facts }) = reports.under(device) else { continue };
                for (fact, Report { value, at, until }) in facts {
                    let until = until.map(Timestamp::as_microsecond);
                    put.execute(params![device, key, fact, value.to_string(), at.as_microsecond(), until])?;
                }
            }
        }
        Ok(transaction.commit()?)
    }
}

fn read(row: &Row<'_>) -> Option<(String, Option<super::Key>, String, Report)> {
    let until: Option<i64> = row.get("until").ok()?;
    let report = Report {
        value: serde_json::from_str(&row.get::<_, String>("value").ok()?).ok()?,
        at: Timestamp::from_microsecond(row.get("at").ok()?).ok()?,
        until: until.map(Timestamp::from_microsecond).transpose().ok()?,
    };
    Some((row.get("device").ok()?, row.get("key").ok()?, row.get("fact").ok()?, report))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(value: serde_json::Value, until: Option<i64>) -> Report {
        let second = |second| Timestamp::from_second(second).unwrap();
        Report { value, at: second(5), until: until.map(second) }
    }

    #[test]
    fn what_was_saved_is_read_again_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let store = ReportStore::open(&path).unwrap();
        let facts = [
            ("disk".to_owned(), report(json!(true), Some(9))),
            ("os \"☃\"".to_owned(), report(json!("a\nb"), None)),
            ("load".to_owned(), report(json!(0.5), Some(-1))),
        ];
        let mut reports = Reports::default();
        reports.insert("laptop", OfDevice { key: Some([7; 32]), facts: facts.into() });
        reports.insert("branch", OfDevice { key: None, facts: [("x".to_owned(), report(json!(1), None))].into() });
        reports.insert("unsaved", OfDevice::default());
        store.save(&reports, &["laptop", "branch"]).unwrap();
        drop(store);

        let store = ReportStore::open(&path).unwrap();
        let read = store.load().unwrap();
        assert_eq!(read.under("unsaved"), None);
        assert_eq!(
            ["laptop", "branch"].map(|name| read.under(name)),
            ["laptop", "branch"].map(|name| reports.under(name))
        );
        store.save(&Reports::default(), &["laptop"]).unwrap();
        let read = store.load().unwrap();
        assert_eq!((read.under("laptop"), read.under("branch").is_some()), (None, true));
    }
}
