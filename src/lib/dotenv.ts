/**
 * Variables of a `.env` file, in the order of the file, the last one of a name counts. `export` before a name, comments,
 * single quotes (as it stands) and double quotes (with \n, \t, \", \\ and over several lines) are understood. What is no
 * assignment is left out.
 */
export function parseDotenv(text: string): Record<string, string> {
  const variables: Record<string, string> = {}
  const assignment =
    /^[ \t]*(?:export[ \t]+)?([A-Za-z_][\w.-]*)[ \t]*=[ \t]*(?:"((?:\\[\s\S]|[^"\\])*)"|'([^']*)'|([^\r\n]*))/gm
  for (const [, name = '', double, single, plain] of text.replace(/^\uFEFF/, '').matchAll(assignment)) {
    if (double !== undefined) variables[name] = unescaped(double)
    else variables[name] = single ?? withoutComment(plain ?? '')
  }
  return variables
}

function unescaped(text: string): string {
  const meant: Record<string, string> = { n: '\n', r: '\r', t: '\t' }
  return text.replace(/\\([\s\S])/g, (_, character: string) => meant[character] ?? character)
}

/** A `#` begins a comment at the start, or after a space. */
function withoutComment(text: string): string {
  return text.replace(/(^|\s)#.*$/, '').trim()
}
