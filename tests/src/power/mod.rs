//! Loss of power, simulated: the programs' data directories are disks that log every change (`mount`), with
//! what was promised outside logged between (`log`); `cut` makes of a log's beginning what a disk may hold
//! when the power goes there.

mod check;
mod cut;
mod disk;
mod log;
mod mount;
mod random;
mod record;
mod site;

pub use check::{Checker, CutOf};
pub use cut::{Mode, cut};
pub use disk::{Content, Disk, Op, ROOT};
pub use log::{Entry, Log, Promise, Side};
pub use mount::Mount;
pub use random::Random;
pub use record::{Recording, record};
pub use site::{Ports, hub};
