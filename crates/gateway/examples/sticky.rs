//! A gateway with fixed members and nothing else: `sticky LISTEN WORKERS NAME=ADDR...`. Prints what it counted every 10 seconds.

use outlive_gateway::{Address, Gateway};
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let listen = args.next().ok_or("usage: sticky LISTEN WORKERS NAME=ADDR...")?.parse::<Address>()?;
    let workers = args.next().ok_or("how many worker threads?")?.parse()?;
    let mut builder = Gateway::builder().listen(listen).workers(workers);
    for member in args {
        let (name, addr) = member.split_once('=').ok_or("a member is NAME=ADDR")?;
        builder = builder.member(name, addr.parse::<Address>()?);
    }
    let gateway = builder.start().await?;
    println!("ready http://{}", gateway.local_addr());
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        println!("{:?}", gateway.stats());
    }
}
