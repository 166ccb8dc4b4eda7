import { expect, test } from 'bun:test'
import { parseDotenv } from './dotenv.ts'

test('names and values are read as a shell would, and what is no assignment is left out', () => {
  const text = [
    '\uFEFFFIRST=1',
    '# a comment',
    'export KEY = value with spaces # and a comment',
    'HASH=a#b',
    "SINGLE='as $it \\n stands # here'",
    'DOUBLE="two\\nlines and \\"quotes\\""',
    'LONG="over',
    'two lines"',
    'EMPTY=',
    'no assignment',
    '9BAD=x',
    'URL=postgres://u:p=w@h/db?x=1',
    'FIRST=2',
  ].join('\r\n')
  expect(parseDotenv(text)).toEqual({
    FIRST: '2',
    KEY: 'value with spaces',
    HASH: 'a#b',
    SINGLE: 'as $it \\n stands # here',
    DOUBLE: 'two\nlines and "quotes"',
    LONG: 'over\r\ntwo lines',
    EMPTY: '',
    URL: 'postgres://u:p=w@h/db?x=1',
  })
})
