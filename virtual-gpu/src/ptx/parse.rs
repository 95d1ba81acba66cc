//! Directives and statements. Scopes in braces may declare registers of their own: names become unique here.

use super::token::{Token, tokens};
use super::{Body, Error, Instruction, Operand, Parameter, Source, Space, Statement, Variable};
use std::collections::BTreeMap;

/// Reads a module's text.
pub(super) fn module(text: &str) -> Result<Source, Error> {
    let tokens = tokens(text)?;
    let end = text.lines().count().max(1) as u32;
    let mut parser = Parser { tokens: &tokens, at: 0, end };
    let mut source = Source::default();
    while let Some(token) = parser.peek() {
        let line = parser.line();
        match token {
            Token::Word(".version" | ".target" | ".address_size") => parser.header()?,
            Token::Word(".file") => parser.rest_of_line(),
            Token::Word(".section") => parser.section()?,
            Token::Word(".visible" | ".weak" | ".extern" | ".common") => parser.at += 1,
            Token::Word(".entry") => {
                parser.at += 1;
                source.kernels.push(parser.entry()?);
            }
            Token::Word(".global" | ".const" | ".shared") => source.variables.push(parser.variable()?),
            Token::Word(".func") => {
                return Err(Error::new(line, "a function: calls are not offered, every one must be inlined"));
            }
            other => return Err(Error::new(line, format!("expected a directive, found {}", shown(other)))),
        }
    }
    Ok(source)
}

fn shown(token: Token<'_>) -> String {
    match token {
        Token::Word(word) => format!("`{word}`"),
        Token::Text(text) => format!("\"{text}\""),
        Token::Mark(mark) => format!("`{mark}`"),
    }
}

struct Parser<'a> {
    tokens: &'a [(Token<'a>, u32)],
    at: usize,
    /// Last line, for errors at the end.
    end: u32,
}

/// Registers of nested scopes: name to unique name.
type Scopes = Vec<BTreeMap<String, String>>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|(token, _)| *token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).map_or(self.end, |(_, line)| *line)
    }

    fn fail<T>(&self, expected: &str) -> Result<T, Error> {
        let found = self.peek().map_or_else(|| "the end".to_owned(), shown);
        Err(Error::new(self.line(), format!("expected {expected}, found {found}")))
    }

    fn word(&mut self, what: &str) -> Result<&'a str, Error> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.fail(what),
        }
    }

    fn is(&self, mark: char) -> bool {
        self.peek() == Some(Token::Mark(mark))
    }

    fn take(&mut self, mark: char) -> bool {
        let found = self.is(mark);
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, mark: char) -> Result<(), Error> {
        if self.take(mark) { Ok(()) } else { self.fail(&format!("`{mark}`")) }
    }

    fn integer(&mut self, what: &str) -> Result<i128, Error> {
        let negative = self.take('-');
        let line = self.line();
        let word = self.word(what)?;
        let value = integer(word).ok_or_else(|| Error::new(line, format!("expected {what}, found `{word}`")))?;
        Ok(if negative { -value } else { value })
    }

    fn size(&mut self, what: &str) -> Result<usize, Error> {
        let line = self.line();
        let value = self.integer(what)?;
        // Nothing in a module is larger than this, and sums of sizes stay numbers.
        usize::try_from(value)
            .ok()
            .filter(|&size| size <= 1 << 31)
            .ok_or_else(|| Error::new(line, format!("{what} of {value}")))
    }

    fn rest_of_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|(_, at)| *at == line) {
            self.at += 1;
        }
    }

    fn header(&mut self) -> Result<(), Error> {
        let line = self.line();
        match self.word("a directive")? {
            ".address_size" => match self.word("64")? {
                "64" => Ok(()),
                other => Err(Error::new(line, format!("expected addresses of 64 bits, found {other}"))),
            },
            ".target" => {
                let target = self.word("a target")?;
                let number =
                    target.strip_prefix("sm_").and_then(|rest| rest.trim_end_matches(['a', 'f']).parse::<u32>().ok());
                if number.is_none_or(|number| number > 90) {
                    return Err(Error::new(line, format!("expected a target up to sm_90, found `{target}`")));
                }
                while self.take(',') {
                    self.word("an option of the target")?;
                }
                Ok(())
            }
            _ => self.word("a version").map(drop),
        }
    }

    /// Debugging information, which changes nothing.
    fn section(&mut self) -> Result<(), Error> {
        while !self.is('{') {
            if self.peek().is_none() {
                return self.fail("`{`");
            }
            self.at += 1;
        }
        let mut depth = 0;
        loop {
            match self.peek() {
                Some(Token::Mark('{')) => depth += 1,
                Some(Token::Mark('}')) => depth -= 1,
                None => return self.fail("`}`"),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// `.shared .align 16 .b8 name[256] = {…};`
    fn variable(&mut self) -> Result<Variable, Error> {
        let line = self.line();
        let space = match self.word("a state space")? {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            other => return Err(Error::new(line, format!("a variable in `{other}` is not offered"))),
        };
        let (mut align, mut width) = (None, None);
        let mut lanes = 1;
        let name = loop {
            let line = self.line();
            match self.word("a variable's name")? {
                ".align" => align = Some(self.size("an alignment")?),
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                word if word.starts_with('.') => {
                    let size =
                        type_bytes(&word[1..]).ok_or_else(|| Error::new(line, format!("unknown type `{word}`")))?;
                    width = Some(size);
                }
                name => break name,
            }
        };
        let width = width.ok_or_else(|| Error::new(line, format!("`{name}` has no type")))?;
        let mut count = 1_usize;
        while self.take('[') {
            let extent = if self.is(']') { 0 } else { self.size("an extent")? };
            self.need(']')?;
            count = count
                .checked_mul(extent)
                .filter(|&count| count <= 1 << 31)
                .ok_or_else(|| Error::new(line, "too large"))?;
        }
        let bytes = width * lanes * count;
        let align = align.unwrap_or(width * lanes);
        if !align.is_power_of_two() {
            return Err(Error::new(line, format!("an alignment of {align}")));
        }
        let mut initial = Vec::new();
        if self.take('=') {
            let braces = self.take('{');
            loop {
                let value = match self.operand()? {
                    Operand::Integer(value) => value as u64,
                    Operand::Float(bits, _) => bits,
                    _ => return self.fail("a number"),
                };
                initial.extend_from_slice(&value.to_le_bytes()[..width]);
                if !self.take(',') {
                    break;
                }
            }
            if braces {
                self.need('}')?;
            }
            if initial.len() > bytes {
                return Err(Error::new(
                    line,
                    format!("`{name}` has {bytes} bytes and {} to start with", initial.len()),
                ));
            }
        }
        // What is not given is zero, as in C.
        if matches!(space, Space::Global | Space::Const) {
            initial.resize(bytes, 0);
        }
        self.need(';')?;
        Ok(Variable { name: name.to_owned(), space, bytes, align, initial })
    }

    fn entry(&mut self) -> Result<Body, Error> {
        let line = self.line();
        let name = self.word("a kernel's name")?.to_owned();
        let mut body = Body {
            name,
            line,
            parameters: Vec::new(),
            max_threads: None,
            registers: BTreeMap::new(),
            variables: Vec::new(),
            statements: Vec::new(),
        };
        if self.take('(') {
            let mut offset = 0_usize;
            while !self.take(')') {
                let parameter = self.parameter(offset)?;
                offset = parameter.offset + parameter.size;
                body.parameters.push(parameter);
                self.take(',');
            }
        }
        loop {
            match self.peek() {
                Some(Token::Word(".maxntid" | ".reqntid")) => {
                    self.at += 1;
                    let mut threads = self.size("threads")? as u32;
                    while self.take(',') {
                        threads = threads.saturating_mul(self.size("threads")? as u32);
                    }
                    body.max_threads = Some(threads);
                }
                Some(Token::Word(".minnctapersm" | ".maxnreg" | ".maxnctapersm")) => {
                    self.at += 1;
                    self.size("a number")?;
                }
                Some(Token::Mark('{')) => break,
                _ => return self.fail("`{`"),
            }
        }
        self.at += 1;
        let mut scopes = vec![BTreeMap::new()];
        while !scopes.is_empty() {
            self.statement(&mut body, &mut scopes)?;
        }
        Ok(body)
    }

    fn parameter(&mut self, offset: usize) -> Result<Parameter, Error> {
        let line = self.line();
        if self.word("`.param`")? != ".param" {
            return Err(Error::new(line, "expected `.param`"));
        }
        let (mut align, mut width) = (None, None);
        let name = loop {
            let line = self.line();
            match self.word("a parameter's name")? {
                ".align" => align = Some(self.size("an alignment")?),
                ".ptr" | ".global" | ".restrict" | ".shared" | ".const" => {}
                word if word.starts_with('.') => {
                    let size =
                        type_bytes(&word[1..]).ok_or_else(|| Error::new(line, format!("unknown type `{word}`")))?;
                    width = Some(size);
                }
                name => break name.to_owned(),
            }
        };
        let width = width.ok_or_else(|| Error::new(line, format!("`{name}` has no type")))?;
        let mut size = width;
        if self.take('[') {
            size = width * self.size("an extent")?;
            self.need(']')?;
        }
        let align = align.filter(|_| size != width).unwrap_or(width).max(width);
        if !align.is_power_of_two() {
            return Err(Error::new(line, format!("an alignment of {align}")));
        }
        Ok(Parameter { name, offset: offset.next_multiple_of(align), size, align })
    }

    fn statement(&mut self, body: &mut Body, scopes: &mut Scopes) -> Result<(), Error> {
        let line = self.line();
        match self.peek() {
            Some(Token::Mark('{')) => {
                self.at += 1;
                scopes.push(BTreeMap::new());
            }
            Some(Token::Mark('}')) => {
                self.at += 1;
                scopes.pop();
            }
            Some(Token::Mark(';')) => self.at += 1,
            Some(Token::Word(".reg")) => self.registers(body, scopes)?,
            Some(Token::Word(".shared" | ".local")) => {
                let variable = self.variable()?;
                body.variables.push(variable);
            }
            Some(Token::Word(".loc")) => self.rest_of_line(),
            Some(Token::Word(".pragma")) => {
                while !self.take(';') {
                    if self.peek().is_none() {
                        return self.fail("`;`");
                    }
                    self.at += 1;
                }
            }
            Some(Token::Word(word))
                if self.tokens.get(self.at + 1).is_some_and(|(next, _)| *next == Token::Mark(':')) =>
            {
                self.at += 2;
                body.statements.push(Statement::Label(word.to_owned()));
            }
            Some(Token::Word(word)) if word.starts_with('.') => {
                return Err(Error::new(line, format!("unknown directive `{word}` in a kernel")));
            }
            Some(_) => {
                let instruction = self.instruction(scopes)?;
                body.statements.push(Statement::Instruction(instruction));
            }
            None => return self.fail("`}`"),
        }
        Ok(())
    }

    /// `.reg .b32 %r<10>;` or `.reg .pred p, q;`
    fn registers(&mut self, body: &mut Body, scopes: &mut Scopes) -> Result<(), Error> {
        self.at += 1;
        let line = self.line();
        let kind = self.word("a register's type")?.trim_start_matches('.').to_owned();
        if kind != "pred" && type_bytes(&kind).is_none_or(|bytes| bytes > 8) {
            return Err(Error::new(line, format!("unknown type `{kind}` of registers")));
        }
        let depth = scopes.len();
        let mut declare = |name: String| {
            // A scope in inline code may use a name again: numbers set its registers apart.
            let unique = if depth == 1 { name.clone() } else { format!("{name}'{}", body.registers.len()) };
            body.registers.insert(unique.clone(), kind.clone());
            if let Some(scope) = scopes.last_mut() {
                scope.insert(name, unique);
            }
        };
        loop {
            let name = self.word("a register's name")?;
            if self.take('<') {
                let line = self.line();
                let count = self.size("a number of registers")?;
                if count > 1 << 20 {
                    return Err(Error::new(line, format!("{count} registers")));
                }
                self.need('>')?;
                (0..count).for_each(|index| declare(format!("{name}{index}")));
            } else {
                declare(name.to_owned());
            }
            if !self.take(',') {
                break;
            }
        }
        self.need(';')
    }

    fn instruction(&mut self, scopes: &Scopes) -> Result<Instruction, Error> {
        let line = self.line();
        let guard = if self.take('@') {
            let negated = self.take('!');
            Some((resolve(scopes, self.word("a predicate")?), negated))
        } else {
            None
        };
        let opcode = self.word("an instruction")?;
        let words = opcode.split('.').map(str::to_owned).collect();
        let mut operands = Vec::new();
        while !self.take(';') {
            let mut operand = self.operand()?;
            rename(&mut operand, scopes);
            operands.push(operand);
            if !self.take(',') && !self.is(';') {
                return self.fail("`,` or `;`");
            }
        }
        Ok(Instruction { line, guard, words, operands })
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        let line = self.line();
        match self.peek() {
            Some(Token::Mark('[')) => {
                self.at += 1;
                let base = match self.peek() {
                    Some(Token::Word(word)) if integer(word).is_none() => {
                        self.at += 1;
                        Some(word.to_owned())
                    }
                    _ => None,
                };
                let mut offset = 0;
                if base.is_none() || self.take('+') || self.is('-') {
                    offset = self.integer("an offset")?;
                }
                self.need(']')?;
                let offset = i64::try_from(offset).map_err(|_| Error::new(line, "an offset beyond 64 bits"))?;
                Ok(Operand::Address(base, offset))
            }
            Some(Token::Mark('{')) => {
                self.at += 1;
                let mut parts = Vec::new();
                while !self.take('}') {
                    parts.push(self.operand()?);
                    if !self.take(',') && !self.is('}') {
                        return self.fail("`,` or `}`");
                    }
                }
                Ok(Operand::Vector(parts))
            }
            Some(Token::Mark('!')) => {
                self.at += 1;
                Ok(Operand::Not(self.word("a predicate")?.to_owned()))
            }
            Some(Token::Mark('-')) => Ok(Operand::Integer(self.integer("a number")?)),
            Some(Token::Word(word)) => {
                self.at += 1;
                if let Some(value) = integer(word) {
                    return Ok(Operand::Integer(value));
                }
                if let Some((bits, width)) = float(word) {
                    return Ok(Operand::Float(bits, width));
                }
                if self.take('|') {
                    return Ok(Operand::Pair(word.to_owned(), self.word("a predicate")?.to_owned()));
                }
                // An offset on a variable's name: `mov.u64 %rd1, name+16`.
                Ok(Operand::Name(word.to_owned()))
            }
            _ => self.fail("an operand"),
        }
    }
}

fn resolve(scopes: &Scopes, name: &str) -> String {
    scopes.iter().rev().find_map(|scope| scope.get(name)).cloned().unwrap_or_else(|| name.to_owned())
}

/// Gives names the unique ones of their scopes.
fn rename(operand: &mut Operand, scopes: &Scopes) {
    match operand {
        Operand::Name(name) | Operand::Not(name) | Operand::Address(Some(name), _) => *name = resolve(scopes, name),
        Operand::Pair(first, second) => {
            *first = resolve(scopes, first);
            *second = resolve(scopes, second);
        }
        Operand::Vector(parts) => parts.iter_mut().for_each(|part| rename(part, scopes)),
        Operand::Integer(_) | Operand::Float(..) | Operand::Address(None, _) => {}
    }
}

/// `12`, `0x1f`, `017`, with or without `U`.
fn integer(word: &str) -> Option<i128> {
    let digits = word.strip_suffix('U').unwrap_or(word);
    match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(i128::from),
        None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse::<u64>().ok().map(i128::from),
        None => None,
    }
}

/// `0f3F800000` and `0d3FF0000000000000`.
fn float(word: &str) -> Option<(u64, u32)> {
    let bits = |rest: &str, digits: usize| (rest.len() == digits).then(|| u64::from_str_radix(rest, 16).ok()).flatten();
    if let Some(rest) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return Some((bits(rest, 8)?, 32));
    }
    Some((bits(word.strip_prefix("0d").or_else(|| word.strip_prefix("0D"))?, 16)?, 64))
}

/// Bytes of a value of this type.
pub(crate) fn type_bytes(name: &str) -> Option<usize> {
    let digits = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    match name {
        "bf16" | "f16" => Some(2),
        "bf16x2" | "f16x2" => Some(4),
        _ if matches!(name.trim_end_matches(digits), "b" | "u" | "s" | "f") => match digits {
            "8" => Some(1),
            "16" => Some(2),
            "32" => Some(4),
            "64" => Some(8),
            _ => None,
        },
        _ => None,
    }
}
