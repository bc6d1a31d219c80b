/** A table that comes as data (`application/vnd.dataresource+json`). */

/** Rows that are shown. */
const MOST = 200;

export function Table({ resource }: { resource: unknown }) {
  const { schema, data } = (resource ?? {}) as { schema?: { fields?: { name?: unknown }[] }; data?: unknown };
  const rows = Array.isArray(data) ? (data as Record<string, unknown>[]) : [];
  const fields = schema?.fields?.map((field) => String(field?.name)) ?? Object.keys(rows[0] ?? {});
  return (
    <div class="table" role="group" aria-label="Table" tabIndex={0}>
      <table>
        <thead>
          <tr>
            {fields.map((field) => (
              <th scope="col" key={field}>
                {field}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.slice(0, MOST).map((row, index) => (
            <tr key={index}>
              {fields.map((field) => (
                <td key={field}>{cell(row?.[field])}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length > MOST && <p class="note quiet">{rows.length - MOST} more rows</p>}
    </div>
  );
}

function cell(value: unknown): string {
  return typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value);
}
