//! Prints each feature of each of our crates, one `package feature` a line, for the loop that checks them alone.

use std::io;

fn main() -> io::Result<()> {
    let metadata = outlive_house::repo::metadata()?;
    for package in metadata.ours() {
        for feature in package.features.keys().filter(|f| *f != "default") {
            println!("{} {feature}", package.name);
        }
    }
    Ok(())
}
