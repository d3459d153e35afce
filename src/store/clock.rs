//! The row that says how long the daemon has run.

use rusqlite::{Connection, OptionalExtension, params};

use super::ClockReading;
use super::rows::Result;
use crate::domain::{RunTime, Timestamp};

/// Notes what the clocks say; the run time never goes back.
pub(super) fn write(transaction: &Connection, reading: &ClockReading) -> Result<()> {
    let ClockReading { run, time, boot, boot_time } = reading;
    let sql = "INSERT INTO clock (one, run, time, boot, boot_time) VALUES (1, ?1, ?2, ?3, ?4)
               ON CONFLICT DO UPDATE SET run = max(run, excluded.run), time = excluded.time,
                   boot = excluded.boot, boot_time = excluded.boot_time";
    let (run, time) = (run.as_micros(), time.as_micros());
    transaction.prepare_cached(sql)?.execute(params![run, time, boot, boot_time])?;
    Ok(())
}

/// What was noted last; the run time not less than any key's moments, should the
/// row be older than they are.
pub(super) fn load(connection: &Connection) -> Result<Option<ClockReading>> {
    let newest = "SELECT max(coalesce(max(suspended_run), 0), coalesce(max(destroyed_run), 0),
                      coalesce(max(rotated_run), 0), coalesce(max(purging_run), 0),
                      coalesce(max(authorized_run), 0)) FROM keys";
    let newest: u64 = connection.query_row(newest, [], |row| row.get(0))?;
    let sql = "SELECT run, time, boot, boot_time FROM clock";
    let reading = connection.query_row(sql, [], |row| {
        Ok(ClockReading {
            run: RunTime::from_micros(row.get::<_, u64>("run")?.max(newest)),
            time: Timestamp::from_micros(row.get("time")?),
            boot: row.get("boot")?,
            boot_time: row.get("boot_time")?,
        })
    });
    Ok(reading.optional()?)
}
