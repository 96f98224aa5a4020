//! The command line of ssm-proxy.

use std::env;
use std::process::ExitCode;

use ssm_proxy::cli;

fn main() -> ExitCode {
    let cli = match cli::parse(env::args_os()) {
        Ok(cli) => cli,
        Err(usage) => return cli::print::usage(&usage),
    };
    let printer = cli.printer();
    match cli::run(cli, &printer) {
        Ok(exit) => exit.into(),
        Err(error) => printer.failure(&error).into(),
    }
}
